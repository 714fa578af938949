"""What PEFT put into a model beneath the edits: whether both can be kept, saving it and putting it back.

One rule, checked before anything is trained and again before anything is written: what is trained is what PEFT's files
hold, and the model they are put on is the model they were taken from.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from steerscope.errors import InputError, reason_of
from steerscope.files import write_text
from steerscope.models.weight_hashes import own_weights
from steerscope.models.wrappers import is_peft, language_model, tuner_layers
from steerscope.steering.peft_files import CONFIG_NAME, differences, read_peft_config, stored_names
from steerscope.steering.peft_types import PROMPT_TYPES, require_supported, type_name

LORA_FOLDER = "lora"
_BEFORE_NAMES = ("base_model.model.", "base_model.")


def active_adapter(model: nn.Module) -> str | None:
    """Return the name of the one PEFT adapter that is active in a model; None for a model without PEFT.

    Raises:
        InputError: None or several are active.
    """
    if not is_peft(model):
        return None
    active: Any = model.active_adapters
    active = list(active() if callable(active) else active)
    if len(active) != 1:
        raise InputError(f"PEFT has the adapters {active} active; expected one, to be saved along. Set one active.")
    return str(active[0])


def require_kept(model: nn.Module) -> None:
    """Refuse a model whose PEFT adapter would not come back from the files that are written of it.

    Raises:
        InputError: PEFT's wrapper cannot be saved; a type or an option does not go under edits; not one adapter is
            active, or it is merged or switched off; or something is trained that PEFT does not save.

    Cost: no numbers are read.
    """
    layers: list[Any] = list(tuner_layers(model))
    if layers and type(model).__name__ == "PeftMixedModel":
        raise InputError(
            "PeftMixedModel cannot be saved by PEFT, so neither could edits on it. Wrap the plain model with "
            "peft.get_peft_model(model, config), without mixed=True."
        )
    if not is_peft(model):
        return
    for config in model.peft_config.values():  # type: ignore[operator]
        require_supported(config)
    name = active_adapter(model)
    assert name is not None
    if not layers and not model.peft_config[name].is_prompt_learning:  # type: ignore[index,union-attr]
        raise InputError(
            "PEFT's layers were taken out of the model inside its wrapper (unload() or merge_and_unload()), so there "
            "is nothing of them to save or to train. Put the edits on the model that it returned."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise InputError(
            "PEFT's adapter is merged into the weights, which are then not those of the base model. Call "
            "unmerge_adapter() first, or merge_and_unload() and put the edits on the result."
        )
    if any(layer.disable_adapters for layer in layers):
        raise InputError(
            "PEFT's adapter is switched off; loaded again, it would act. Switch it on "
            "(model.base_model.enable_adapter_layers()), or unload() it and put the edits on the plain model."
        )
    if (scale := next(filter(None, (_scaled(layer, name) for layer in layers)), None)) is not None:
        found, configured = scale
        raise InputError(
            f"layers of PEFT's adapter {name!r} are scaled by {found:g} where its configuration says {configured:g} "
            "(set_scale(), scale_layer() or rescale_adapter_scale()), which PEFT does not save. Set it back "
            "(set_scale(name, 1.0), or leave rescale_adapter_scale()), or write it into lora_alpha of a new adapter."
        )
    if unsaved := _trained_but_unsaved(model, name):
        raise InputError(
            f"{unsaved[0]!r} and {len(unsaved) - 1} more parameters are trainable, and PEFT does not save them with "
            f"its adapter {name!r}. Freeze them, or name their modules in modules_to_save of PEFT's configuration."
        )


def _scaled(layer: Any, name: str) -> tuple[float, float] | None:
    """Return a layer's scale and the one that its configuration gives, where they differ."""
    scaling = getattr(layer, "scaling", None)
    alphas = getattr(layer, "lora_alpha", None) or getattr(layer, "alpha", None)
    if (
        not hasattr(layer, "set_scale")
        or not isinstance(scaling, dict)
        or name not in scaling
        or not isinstance(alphas, dict)
        or name not in alphas
    ):
        return None
    found = scaling[name]
    if type(layer).__module__.startswith("peft.tuners.adalora"):  # divides by the rank when it runs
        configured = alphas[name] if alphas[name] > 0 else float(layer.r[name])
    else:
        try:
            layer.set_scale(name, 1.0)  # PEFT knows how it computes the scale, and says it nowhere else
            configured = scaling[name]
        finally:
            scaling[name] = found
    return None if math.isclose(found, configured, rel_tol=1e-9) else (float(found), float(configured))


def saved_tensors(model: Any, name: str) -> dict[str, Tensor]:
    """Return what PEFT saves of an adapter, without embeddings that it did not train: the model's own are there.

    Args:
        model: A model of PEFT.
        name: Of PEFT's adapter.

    Returns:
        Tensors by PEFT's names for files.

    Raises:
        InputError: PEFT cannot save adapters of this sort.
    """
    from peft import get_peft_model_state_dict

    # With the state given PEFT does not warn of shapes (it takes the bias of a lora_B for a damaged weight).
    try:
        found: dict[str, Tensor] = get_peft_model_state_dict(
            model, state_dict=model.state_dict(), adapter_name=name, save_embedding_layers=False
        )
    except NotImplementedError as error:
        config = model.peft_config[name]
        raise InputError(
            f"PEFT's {config.peft_type.value} with bias={config.bias!r} cannot be saved by the installed PEFT. Use "
            "another bias, or a newer PEFT."
        ) from error
    return found


def _trained_but_unsaved(model: Any, name: str) -> list[str]:
    saved = {value.data_ptr() for value in saved_tensors(model, name).values()}
    return [
        f"{what}"
        for what, parameter in model.named_parameters()
        # What a prompt encoder saves is made from its parameters; which encoders may be here, their types say.
        if parameter.requires_grad and parameter.data_ptr() not in saved and not what.startswith("prompt_encoder.")
    ]


def kept_with_trained(model: nn.Module) -> set[int]:
    """Return the addresses of what belongs into a checkpoint beside trained parameters: the rest of PEFT's adapter.

    What PEFT draws at random and freezes (a projection, or a factor frozen by hand) is drawn otherwise in the next
    process. Empty where PEFT trains nothing.
    """
    if not is_peft(model) or not any(p.requires_grad for p in model.parameters()):
        return set()
    name = active_adapter(model)
    assert name is not None
    kept = {value.data_ptr() for value in saved_tensors(model, name).values()}
    if type_name(model.peft_config[name]) in PROMPT_TYPES:  # type: ignore[index]
        encoders: Any = model.prompt_encoder
        kept |= {p.data_ptr() for p in encoders[name].parameters()}
    return kept


def overwritten(model: nn.Module, config: Any, stored: set[str]) -> frozenset[str]:
    """Return which of the model's own weights PEFT trains in place and saves: biases, with its option ``bias``.

    Args:
        model: With PEFT's adapter or without.
        config: PEFT's configuration, or what its file says.
        stored: Names of the tensors in PEFT's file.

    Returns:
        Names as the model has them without PEFT.
    """
    bias = config.get("bias") if isinstance(config, dict) else getattr(config, "bias", None)
    if bias in (None, "none", False):
        return frozenset()
    own = {name for name, _ in own_weights(model)}
    plain = set()
    for name in stored:
        if name.endswith(".bias"):
            prefix = next((one for one in _BEFORE_NAMES if name.startswith(one)), "")
            plain.add(name.removeprefix(prefix).replace(".base_layer.", "."))
    return frozenset(own & plain)


def overwritten_in(model: nn.Module) -> frozenset[str]:
    """Return :func:`overwritten` of the active adapter of a model."""
    name = active_adapter(model)
    if name is None:
        return frozenset()
    return overwritten(model, model.peft_config[name], set(saved_tensors(model, name)))  # type: ignore[index]


def overwritten_by(model: nn.Module, folder: Path, name: str) -> frozenset[str]:
    """Return :func:`overwritten` of the adapter in a folder.

    Args:
        model: Without PEFT.
        folder: Of the steering adapter.
        name: Of PEFT's adapter.

    Returns:
        Names of the base model's own weights that loading the adapter replaces.

    Raises:
        InputError: Its files are missing, damaged, or not read.
    """
    place = lora_place(folder, name)
    return overwritten(model, read_peft_config(place), stored_names(place))


def lora_place(folder: Path, name: str) -> Path:
    """Return where an adapter's LoRA is: PEFT gives all but ``default`` a folder of their own.

    Args:
        folder: Of the steering adapter.
        name: Of PEFT's adapter.

    Returns:
        The folder with PEFT's configuration and weights; it need not exist.
    """
    return folder / LORA_FOLDER if name == "default" else folder / LORA_FOLDER / name


def write_peft(model: nn.Module, folder: Path, name: str, base: str) -> None:
    """Write an adapter of PEFT in PEFT's format: the same adapter, the same bytes.

    PEFT names the place that the base model was loaded from, which means nothing elsewhere, and writes sets in the
    order that they iterate in, which differs from process to process and from copy to copy.

    Args:
        model: A model of PEFT.
        folder: Where PEFT writes ``default``; its other adapters get a folder of their own in it.
        name: Of PEFT's adapter.
        base: The base model's name, as the user gave it.
    """
    held: Any = model.peft_config[name]  # type: ignore[index]
    place, held.base_model_name_or_path = held.base_model_name_or_path, base
    try:
        # The model's own embeddings are there already; left to itself PEFT would ask the hub if they were resized.
        model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)  # type: ignore[operator]
    finally:
        held.base_model_name_or_path = place
    path = (folder if name == "default" else folder / name) / CONFIG_NAME
    ordered = {key: sorted(value) for key, value in held.to_dict().items() if isinstance(value, set)}
    told = json.loads(path.read_text(encoding="utf-8")) | ordered
    write_text(path, json.dumps(told, indent=2, allow_nan=False) + "\n")


def put_beneath(model: nn.Module, folder: Path, name: str, is_trainable: bool) -> nn.Module:
    """Return the model with the PEFT adapter of a steering adapter's folder in it.

    Args:
        model: Without PEFT.
        folder: Of the steering adapter.
        name: Of PEFT's adapter.
        is_trainable: Whether training continues.

    Returns:
        The model of PEFT around ``model``.

    Raises:
        InputError: Its files are missing or damaged, do not go under edits, or cannot be trained on. The model is
            what it was.
    """
    from peft import PeftModel  # slow to load

    place = lora_place(folder, name)
    told, stored = read_peft_config(place), stored_names(place)
    if is_trainable and type_name(told) in PROMPT_TYPES:
        raise InputError(
            f"PEFT's {type_name(told)} cannot be trained on from its files, which hold what its encoder computes. Load "
            "it with is_trainable=False, or go on from a checkpoint of the Trainer."
        )
    if is_trainable:
        require_supported(told)
    before = copies(model, overwritten(model, told, stored))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of keys that do not fit; they are refused below
            wrapped = PeftModel.from_pretrained(model, str(place), adapter_name=name, is_trainable=is_trainable)
        missing, unknown = differences(wrapped, name, stored)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        restore(model, before)
        reason = reason_of(error, 200)
        raise InputError(f"cannot load the LoRA in {str(place)!r} ({reason}). Copy the whole folder again.") from error
    if missing or unknown:
        take_away(wrapped)
        restore(model, before)
        raise InputError(
            f"the LoRA in {str(place)!r} lacks {some(missing)} and has unknown {some(unknown)}. Copy the whole "
            "folder that was saved."
        )
    return wrapped


def take_away(wrapped: Any) -> nn.Module:
    """Take PEFT's adapter off without merging it, and return the language model."""
    if any(config.is_prompt_learning for config in wrapped.peft_config.values()):
        return language_model(wrapped)
    found: nn.Module = wrapped.unload()
    return found


def copies(model: nn.Module, names: frozenset[str]) -> dict[str, Tensor]:
    """Return copies of some of a model's own weights, by name.

    Args:
        model: A model, with or without PEFT.
        names: Names of its own weights, as :func:`own_weights` gives them.

    Returns:
        Detached copies on the same device.
    """
    return {name: value.detach().clone() for name, value in own_weights(model) if name in names}


@torch.no_grad()
def restore(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Write such copies back.

    Args:
        model: The model the copies were taken from.
        values: What :func:`copies` returned.
    """
    for name, value in own_weights(model):
        if name in values:
            value.copy_(values[name])


def some(names: list[str]) -> str:
    """Return a few of many names, in words."""
    return "nothing" if not names else ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
