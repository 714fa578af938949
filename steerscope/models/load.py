"""Load a causal language model with its sites: from a name, a folder, a GGUF file or the bundled model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from steerscope.errors import InputError, did_you_mean
from steerscope.files import told
from steerscope.model_identity import ModelIdentity
from steerscope.models.attention import keep_softcapping
from steerscope.models.bundled import (
    BUNDLED_NAME,
    QUANTISED_NOTE,
    bundled_file,
    converted_gguf,
    incomplete,
    quiet_transformers,
    setup_of,
    sha256_of,
)
from steerscope.models.description import BlockDescription
from steerscope.models.layouts import known_description
from steerscope.models.lengths import context_of
from steerscope.models.load_errors import not_loaded, quantisation_asked_for
from steerscope.models.offloaded import device_of, require_runs
from steerscope.models.packed import compute_dtype, is_packed, is_packed_tensor, num_weights, quantisation_of
from steerscope.models.recognition.skeleton import refuse_from_configuration
from steerscope.models.selfcheck import check_sites
from steerscope.models.site_map import SiteMap, find_sites, told_what_is_below
from steerscope.models.weight_hashes import digest_of_parameters
from steerscope.models.wrappers import in_evaluation_mode
from steerscope.option_types import dtype_name

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# The device that is there, whichever it is.
AUTO = "auto"
# Layers over all devices, as transformers' device_map places them; what fits on none is offloaded.
SPLIT = ("balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A causal language model ready to be analysed: evaluation mode, weights frozen, sites checked."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    site_map: SiteMap
    identity: ModelIdentity

    def __repr__(self) -> str:
        told = self.identity
        return (
            f"<LoadedModel {told.name!r}: {told.layers} blocks of width {told.d_model} ({told.layout}), "
            f"{told.n_params:,} parameters, {told.dtype} on {self.device}>"
        )

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return device_of(self.model)

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens, or ``None`` if the configuration does not say."""
        return context_of(self.model)


def require_loaded(loaded: object) -> None:
    """Refuse what is no loaded model where one is asked for.

    Raises:
        InputError: It is a name, a model of transformers, or something else.
    """
    if not isinstance(loaded, LoadedModel):
        raise InputError(
            f"expected a loaded model, got a {type(loaded).__name__}. Pass load_model(name), or "
            "wrap_model(model, tokenizer) for a model in memory."
        )


@contextmanager
def as_loaded(model: LoadedModel | nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[LoadedModel]:
    """Have a loaded model of what may be one, or a model of transformers, which gets its modes and flags back.

    Args:
        model: A loaded model, or a model that :func:`wrap_model` takes.
        tokenizer: Of a model of transformers; a loaded one has its own.

    Yields:
        The loaded model; what was in training and what was trainable is so again afterwards.

    Raises:
        InputError: It is something else, or the tokenizer is missing or one too many.
    """
    if isinstance(model, LoadedModel):
        if tokenizer is not None:
            raise InputError("got a tokenizer with a loaded model, which has its own. Leave it out.")
        yield model
        return
    if not isinstance(model, nn.Module):
        require_loaded(model)
    if tokenizer is None:
        raise InputError(
            f"a {type(model).__name__} says nothing of how texts become tokens. Give tokenizer=..., the model's own, "
            "or load_model(name), which brings its own."
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with in_evaluation_mode(model):
        try:
            named = str(getattr(getattr(model, "config", None), "name_or_path", "") or "model")
            yield wrap_model(model, tokenizer, name=named)
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def load_model(
    name_or_path: str | Path = BUNDLED_NAME,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
    revision: str | None = None,
    description: BlockDescription | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model, find its sites and check them.

    Args:
        name_or_path: ``"smollm2-135m"`` (bundled), a local folder, a ``.gguf`` file, or a Hugging Face name.
        device: Where to put the model; ``"auto"`` for a GPU if there is one, else the CPU; ``"balanced"`` and
            ``"sequential"`` for its layers over all GPUs and then the CPU, as transformers' ``device_map``.
        dtype: Data type of weights and computation; ``"bf16"`` and the like are understood.
        revision: Branch, tag or commit of a Hugging Face name.
        description: How the model's blocks are built, for a family steerscope does not know.
        trust_remote_code: Run code that comes with the model. Off unless asked for.

    Returns:
        The model in evaluation mode with frozen weights, its tokenizer, sites and identity.

    Raises:
        InputError: Unknown name, unreadable folder, missing or NaN weights, a device that is not there, too little
            memory, a package that is missing, code that comes with the model and was not asked for.
        UnsupportedModelError: No known layout, or the self-check failed.
    """  # noqa: DOC501  (a function makes the InputError)
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(
            f"the model is {name_or_path!r}, a {type(name_or_path).__name__}; expected a name or a path. Give "
            f"{BUNDLED_NAME!r}, a model folder, a .gguf file or a Hugging Face name."
        )
    name = os.fspath(name_or_path)
    if not name.strip():
        raise InputError(
            f"the model's name is empty; expected {BUNDLED_NAME!r}, a model folder ('.' for this one), a .gguf file or "
            "a Hugging Face name."
        )
    chosen_dtype = _dtype(dtype)
    placed: Any = device if device in SPLIT else _device(device)
    with told(f"read the model {name!r}"):
        source, quantised, digest = _locate(name)
    for_files: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if source.exists():
        for_files["local_files_only"] = True
    try:
        config = AutoConfig.from_pretrained(source if source.exists() else name, **for_files)
    except Exception as error:  # hub, network and parse errors have no common type
        raise not_loaded(name, source, error) from error
    method = quantisation_asked_for(config)
    chosen = description or known_description(config.get_text_config(decoder=True))
    if chosen is None and method is None:
        refuse_from_configuration(config, trust_remote_code=trust_remote_code)
    place = source if source.exists() else name
    options = dict(for_files)
    if placed in SPLIT:
        options["device_map"] = placed
    elif method is not None:
        options["device_map"] = {"": placed}  # quantised layers are made in place, and not moved
    try:
        # Weights the files lack would be filled in at random, with no more than a warning: they are asked for.
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, dtype=chosen_dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
            model, found = loaded
            if missing := incomplete(found):
                raise InputError(
                    f"the weights of {name!r} do not fill its configuration ({missing}); expected every tensor in its "
                    "shape. Copy or download the model again, or correct its config.json."
                )
            tokenizer = AutoTokenizer.from_pretrained(place, **for_files)
            if "device_map" not in options:
                model.to(placed)
    except Exception as error:
        raise not_loaded(name, source, error, method) from error
    digest = digest or _digest_of_files(source) or digest_of_parameters(model)
    setup = (setup_of(source) or getattr(config, "_commit_hash", None) or "") if quantised is None else ""
    if method is not None and not any(is_packed(module) for module in model.modules()):
        quantised = quantised or _made_float(method)  # the configuration of the model made says no more of it
    return wrap_model(
        model,
        tokenizer,
        name=name,
        revision=getattr(config, "_commit_hash", None) or revision,
        sha256=digest,
        quantised=quantised,
        description=chosen,
        setup=setup,
    )


def load_tokenizer(
    name_or_path: str | Path = BUNDLED_NAME, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model alone, as :func:`load_model` does.

    Args:
        name_or_path: As for :func:`load_model`.
        revision: Branch, tag or commit of a Hugging Face name.
        trust_remote_code: Run code that comes with the model.

    Returns:
        The tokenizer.

    Raises:
        InputError: There is no such model, or it has no tokenizer.
    """  # noqa: DOC501  (a function makes the InputError)
    name = str(name_or_path)
    with told(f"read the tokenizer of {name!r}"):
        source, _, _ = _locate(name)
    try:
        return AutoTokenizer.from_pretrained(
            source if source.exists() else name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=source.exists(),
        )
    except Exception as error:  # hub, network and parse errors have no common type
        raise not_loaded(name, source, error) from error


def wrap_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "model",
    revision: str | None = None,
    sha256: str | None = None,
    quantised: str | None = None,
    description: BlockDescription | None = None,
    setup: str = "",
) -> LoadedModel:
    """Make a model that is already in memory (PEFT-wrapped or not) ready to be analysed.

    The model is put in evaluation mode and its parameters are frozen; attention that would leave out the softcapping
    its configuration asks for is switched to ``eager``. Nothing else in it changes.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        name: What messages and reports call it.
        revision: Branch, tag or commit it came from, for the record.
        sha256: Hash of its weights, where it is known; by default computed from the parameters.
        quantised: What happened to the weights before they were float, in words, for the record.
        description: Where the parts of its blocks are, for a family that steerscope does not know.
        setup: Hash of what else decides its outputs, see :class:`ModelIdentity`.

    Returns:
        The model with its tokenizer, sites and identity.

    Raises:
        InputError: A weight is NaN or infinite, or has no values; the message names it.
        UnsupportedModelError: No known layout, or the self-check failed.
    """
    require_runs(model)
    site_map = find_sites(model, description)
    for parameter_name, parameter in model.named_parameters():
        # What is offloaded shows in the logits, which the self-check requires to be finite.
        if parameter.is_meta or is_packed_tensor(parameter):
            continue
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(
                f"weight {parameter_name!r} of {name!r} holds NaN or infinite values; every number computed "
                "from it would be worthless. Check the checkpoint or load it in float32."
            )
    keep_softcapping(model)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if description is not None:
        site_map = told_what_is_below(model, site_map)
    check_sites(model, site_map)
    identity = ModelIdentity(
        name=name,
        revision=revision,
        sha256=sha256 or digest_of_parameters(model),
        layers=len(site_map.blocks),
        # Some libraries (compressed-tensors) make weights float in a model's first pass, which was run here.
        quantised=quantised
        or quantisation_of(site_map.linear_maps().values())
        or _made_float(quantisation_asked_for(getattr(model, "config", None))),
        layout=site_map.description.layout,
        d_model=site_map.d_model,
        n_params=num_weights(model),
        dtype=str(compute_dtype(model)).removeprefix("torch."),
        setup=setup,
    )
    return LoadedModel(model, tokenizer, site_map, identity)


def _made_float(method: str | None) -> str | None:
    return None if method is None else f"weights quantised by {method} made float again on loading"


def _locate(name: str) -> tuple[Path, str | None, str | None]:
    """Return where a model is, what its quantisation was, and its hash where it is one file."""
    if name == BUNDLED_NAME:
        file = bundled_file()
        return converted_gguf(file), QUANTISED_NOTE, sha256_of(file)
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise InputError(f"there is no file {name!r}. Give the path of a GGUF file that exists.")
        note = f"weights of the GGUF file {path.name} made float again, whatever their precision there"
        return converted_gguf(path), note, sha256_of(path)
    if path.is_file():
        raise InputError(f"{name!r} is a file; expected a transformers model folder or a .gguf file. Name one.")
    if path.exists() and not path.is_dir():
        raise InputError(f"{name!r} is no folder and no file; expected a transformers model folder. Check the path.")
    if path.is_dir() and not (path / "config.json").exists():
        raise InputError(f"folder {name!r} has no config.json; expected a transformers model folder. Check the path.")
    if not path.exists() and "/" not in name and "\\" not in name:
        raise InputError(
            f"there is no model {name!r} here, and a Hugging Face name is OWNER/NAME.{did_you_mean(name, _near())} "
            f"Give {BUNDLED_NAME!r}, a model folder, a .gguf file or OWNER/NAME (gpt2 is openai-community/gpt2)."
        )
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.exists():
        raise InputError(f"there is no model folder {name!r}. Check the path, or use {BUNDLED_NAME!r}.")
    return path, None, None


def _near() -> list[str]:
    """Return what a name without a folder could have meant: the bundled model, or a folder here."""
    here = [one.name for one in Path().iterdir() if one.is_dir()] if os.access(".", os.R_OK) else []
    return [BUNDLED_NAME, *sorted(here)]


def _digest_of_files(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return None
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype_name(dtype)
    if name not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}. Valid: {', '.join(DTYPES)} (or fp32, fp64, bf16, fp16).")
    return DTYPES[name]


def _fastest_device() -> torch.device:
    """Return the GPU that torch would use, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _device(device: str | torch.device) -> torch.device:
    if device == AUTO:
        return _fastest_device()
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # the meta device, which holds no numbers, fails here too
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {device!r} cannot be used here ({reason}). Use 'cpu', or a device you have."
        ) from None
    return chosen
