"""Why a model could not be loaded, in one sentence with the advice that helps, whatever transformers raised."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from steerscope.errors import InputError, did_you_mean, reason_of
from steerscope.models.bundled import BUNDLED_NAME

_AGAIN = "copy or download the folder again"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def quantisation_asked_for(config: Any) -> str | None:
    """Return the method by which a configuration says that weights are quantised, ``None`` where it says nothing."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    told = found if isinstance(found, dict) else getattr(found, "__dict__", {})
    method = told.get("quant_method")
    return "no named method" if method is None else str(getattr(method, "value", method))


def not_loaded(name: str, source: Path, error: Exception, quantisation: str | None = None) -> InputError:
    """Say why a model could not be loaded.

    Args:
        name: As the user named it.
        source: Where it was looked for; what does not exist was asked for by its Hugging Face name.
        error: What was raised.
        quantisation: The method by which its weights are quantised.

    Returns:
        The error to raise, in one sentence with the next step; ``error`` itself if it is such a one.
    """
    if isinstance(error, InputError):
        return error
    text, reason = " ".join(str(error).split()), reason_of(error)
    lower = text.lower()
    if "trust_remote_code" in text:
        return InputError(
            f"model {name!r} comes with code of its own, which is not run unless asked for; expected a model that "
            "transformers knows. Read its .py files, then add [[trust_remote_code=True]]."
        )
    if "weights only load failed" in lower:
        return InputError(
            f"the pickled weights of {name!r} hold more than tensors, and unpickling them could run any code; expected "
            "safetensors, or a pickle of tensors. Do not load this file; look for the model as *.safetensors."
        )
    local = source.exists() and source == Path(name)
    what = f"the model in folder {name!r}" if local else f"a model named {name!r}"
    if quantisation is not None and not _is_short_of_memory(error, lower):
        return InputError(
            f"cannot load {what} ({reason}). Its config.json asks for a quantisation ({quantisation}): install the "
            "package that computes with it, on a machine that it runs on, or take the model that it was made from."
        )
    if (advice := _advice(error, lower, source)) is not None:
        return InputError(f"cannot load {what} ({reason}). {advice}")
    if source.exists() and not local:
        return InputError(
            f"cannot load the converted copy of {name!r} ({reason}). Delete the folder {str(source)!r}: it will be "
            "made again."
        )
    if local:
        return InputError(
            f"cannot load {what} ({reason}). Expected config.json, weights and tokenizer as save_pretrained writes "
            f"them: {_AGAIN}."
        )
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    return InputError(
        f"cannot load {what} ({reason}).{did_you_mean(name, [BUNDLED_NAME])} Give {BUNDLED_NAME!r}, "
        f"a model folder, a .gguf file or a Hugging Face name"
        f"{' (HF_HUB_OFFLINE is set)' if offline else ' that can be reached'}."
    )


def _is_short_of_memory(error: Exception, lower: str) -> bool:
    is_so_by_type = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_so_by_type or "out of memory" in lower or "can't allocate" in lower


def _advice(error: Exception, lower: str, source: Path) -> str | None:
    """Return what to do about an error whose cause can be told, ``None`` for all others."""
    if _is_short_of_memory(error, lower):
        return (
            "There is not enough memory: load it with [[dtype='bfloat16']], on another [[device]], or take a smaller "
            "model."
        )
    asks_for_attention = "attention" in lower and any(
        word in lower for word in ("flash", "implementation", "toggled", "sdpa", "flex")
    )
    if asks_for_attention or (isinstance(error, ImportError) and "`kernels`" in lower):
        return (
            "Its config.json asks for an attention that is not installed here or not made for it; expected sdpa or "
            'eager: set "attn_implementation": "sdpa" there, or install what it asks for.'
        )
    if isinstance(error, ImportError):
        return "It needs a package that is not installed: install it, or take a model that does without."
    if isinstance(error, AttributeError) and "module 'torch'" in lower:
        return "Its config.json names a data type that torch does not have; expected float32, bfloat16 or float16."
    if "does not recognize this architecture" in lower:
        return (
            f"Expected a family that transformers knows: upgrade transformers if it is a new one; otherwise {_AGAIN}, "
            "or correct model_type in its config.json."
        )
    if (damaged := _damaged_json(source)) is not None:
        return damaged
    if isinstance(error, KeyError):
        fields = _fields_with(source, error.args[0] if error.args else None)
        what = f"{fields} in its config.json is" if fields else "Its config.json holds"
        return f"{what} a name that transformers does not know: correct it there, or upgrade transformers."
    if type(error).__module__.startswith("huggingface_hub") and "alidation" in type(error).__name__:
        return "Its config.json holds a value that this family does not take: correct it there."
    pointers = (
        [file.name for file in sorted(source.glob("*.safetensors")) if _is_pointer(file)] if source.is_dir() else []
    )
    if pointers:
        return f"{pointers[0]} is a pointer of Git LFS and not the weights: run 'git lfs pull' in the folder."
    if source.is_dir() and "tokenizer" in lower and not any((source / name).exists() for name in _TOKENIZER_FILES):
        return (
            "It has no tokenizer; expected tokenizer.json, or the file its tokenizer is made of. Copy the tokenizer's "
            "files from the model that it was made from."
        )
    return None


def _damaged_json(source: Path) -> str | None:
    """Name the first JSON file of a folder that cannot be read, and say what to do."""
    for file in sorted(source.glob("*.json")) if source.is_dir() else []:
        try:
            if file.read_bytes().startswith(b"\xef\xbb\xbf"):
                return f"{file.name} begins with a byte order mark: save it as UTF-8 without one."
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return f"{file.name} is no whole JSON file, cut off or damaged: copy or download it again."
    return None


def _fields_with(source: Path, value: object) -> str:
    """Return the fields of a folder's configuration that hold a text, as ``rope_parameters.rope_type``."""
    if not isinstance(value, str) or not (source / "config.json").is_file():
        return ""

    def places(values: object, place: str) -> list[str]:
        if isinstance(values, dict):
            return [one for name, inner in values.items() for one in places(inner, f"{place}.{name}")]
        return [place.lstrip(".")] if values == value else []

    return " and ".join(places(json.loads((source / "config.json").read_text(encoding="utf-8")), ""))


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return False
