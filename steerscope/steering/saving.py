"""An adapter in a folder: ``adapter_config.json``, ``adapter_model.safetensors``, and ``lora/`` if one is underneath.

The configuration says all that decides what the numbers mean: the edit's equation, the equation of every site, and
the model. Reading is strict: what does not fit is refused with what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.files import parse_json, read_object, write_text, written_aside
from steerscope.finite import require_finite
from steerscope.folders import CARD_NAME, STEERING_FORMAT, Kind, may_write_card, require_folder_for
from steerscope.installed import own_version, require
from steerscope.models.site_map import SiteMap
from steerscope.option_types import plain_values
from steerscope.sites import Site
from steerscope.steering.adapter_file import AdapterFile
from steerscope.steering.adapters import checked_strength
from steerscope.steering.beneath import LORA_FOLDER, some, write_peft
from steerscope.steering.card import card_of
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import FAMILIES
from steerscope.steering.identity import BaseIdentity
from steerscope.steering.peft_files import CONFIG_NAME, WEIGHTS_NAME, instead_of_adapter, stored_names

FORMAT = STEERING_FORMAT
VERSION = 1
# A Trainer keeps a model that is not transformers' own as the tensors of its state; one of them is its configuration.
CHECKPOINT_NAME, CHECKPOINT_KEY = "model.safetensors", "adapter_config"
_FIELDS = {"format", "format_version", "steerscope_version", "equation", "steering", "base_model", "sites", "lora"}
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("sites", "steering", "base_model"), (dict, "an object")),
    **dict.fromkeys(("equation", "steerscope_version"), (str, "a text")),
    "lora": (str | None, "the name of a LoRA, or null"),
}


def equations(site_map: SiteMap, sites: tuple[Site, ...]) -> dict[str, str]:
    """Return the equation of every site.

    Args:
        site_map: The sites of the model.
        sites: Those of the adapter.

    Returns:
        Equations in the notation of docs/sites.md, by the site's name.
    """
    found = site_map.description.equations()
    return {str(site): found[site.kind] for site in sites}


def write(folder: Path, adapter: AdapterFile, model: nn.Module, measured: Mapping[str, object] | None = None) -> None:
    """Write an adapter; ``model`` is the base model, whose LoRA goes along.

    All files are written aside before an earlier adapter is touched, and a folder with a configuration is complete.

    Args:
        folder: Where to write; created where it does not exist.
        adapter: Configuration and tensors.
        model: The base model, whose LoRA goes along.
        measured: What is known of the adapter, for its model card.

    Raises:
        InputError: A tensor holds NaN or infinite numbers, or the folder holds something else than an adapter of this
            sort, or cannot be written to.
    """
    for name, value in adapter.tensors.items():
        advice = "The training diverged: train again, with a smaller learning rate."
        if name.endswith(".scale"):
            advice = "Call measure_scales(batches) first."
        require_finite(f"{name!r} of the adapter", value, advice=advice)
    require_folder_for(folder, Kind.STEERING)
    require_folder_for(folder / LORA_FOLDER, Kind.PEFT)
    with written_aside(folder, "the adapter", last=(CONFIG_NAME,)) as aside:
        _write(aside, adapter, model)
        if may_write_card(folder / CARD_NAME):
            write_text(aside / CARD_NAME, card_of(adapter, measured or {}))


def _write(folder: Path, adapter: AdapterFile, model: nn.Module) -> None:
    if adapter.lora is not None:
        write_peft(model, folder / LORA_FOLDER, adapter.lora, adapter.base.name)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in adapter.tensors.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    write_text(folder / CONFIG_NAME, config_text(adapter))


def config_text(adapter: AdapterFile) -> str:
    """Return what ``adapter_config.json`` says of an adapter."""
    told = {
        "format": FORMAT,
        "format_version": VERSION,
        "steerscope_version": own_version(),
        "equation": FAMILIES[adapter.config.family].equation,
        "steering": adapter.config.to_dict(),
        "base_model": adapter.base.as_dict(),
        "sites": dict(adapter.sites),
        "lora": adapter.lora,
    }
    if adapter.strength != 1:  # only where it says something: versions that know no strength refuse the file then
        told["strength"] = adapter.strength
    return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(folder: Path) -> AdapterFile:
    """Read an adapter.

    Returns:
        Configuration, identity of the base model, and tensors.

    Raises:
        InputError: There is none, a file is damaged, incomplete or of another format, or it stands on a LoRA and PEFT
            is not installed.
    """
    if (found := _of_checkpoint(folder)) is not None:
        text, tensors = found
        told, where = _checked(text, folder / CHECKPOINT_NAME), folder / CHECKPOINT_NAME
        if told["lora"] is not None:
            raise InputError(
                f"{str(folder)!r} is a Trainer's checkpoint of edits on a LoRA, which holds no configuration of PEFT. "
                "Put both on the model as for training, resume from it, then save_pretrained()."
            )
    else:
        told, where = _read_config(folder), folder / CONFIG_NAME
        if told["lora"] is not None:
            require("train", f"the adapter in {str(folder)!r}, which stands on a LoRA,")
        stored_names(folder)
        tensors = load_file(folder / WEIGHTS_NAME)
    config = _read_steering(told["steering"], tensors, repr(str(where)))
    if told["equation"] != FAMILIES[config.family].equation:
        raise InputError(
            f"the adapter in {str(folder)!r} becomes {told['equation']!r}; family {config.family!r} of this steerscope "
            f"becomes {FAMILIES[config.family].equation!r}. Use steerscope {told['steerscope_version']!r}."
        )
    return AdapterFile(
        config=config,
        base=BaseIdentity.from_dict(told["base_model"]),
        sites=told["sites"],
        lora=told["lora"],
        tensors=tensors,
        strength=checked_strength(told.get("strength", 1.0)),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise InputError(
            f"there is no adapter in {str(folder)!r}: {CONFIG_NAME} is missing. Give a folder that save_pretrained() "
            f"wrote.{instead_of_adapter(folder)}"
        )
    return _checked(read_object(path, "the adapter's configuration", "It was cut off or damaged. Copy it again."), path)


def _checked(told: Any, path: Path) -> dict[str, Any]:
    """Return an adapter's configuration if it is one of this version's.

    Raises:
        InputError: It is not.
    """
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise InputError(
            f"{str(path)!r} is not a steering adapter of steerscope"
            f"{' but one of PEFT; load it with PeftModel' if isinstance(told, dict) and 'peft_type' in told else ''}. "
            "Give a folder that SteeringModel.save_pretrained() wrote."
        )
    if type(told.get("format_version")) is not int:
        raise InputError(
            f"{str(path)!r} has format_version {told.get('format_version')!r}; expected a whole number. It was changed "
            "by hand: copy it again."
        )
    if told["format_version"] != VERSION:
        raise InputError(
            f"{str(path)!r} has format {told.get('format_version')!r}; this steerscope reads {VERSION}. "
            f"It was written by steerscope {told.get('steerscope_version')!r}: use that version."
        )
    if set(told) - {"strength"} != _FIELDS:
        raise InputError(f"{str(path)!r} has fields {sorted(told)}; expected {sorted(_FIELDS)}. Save it again.")
    for name, (kind, said) in _KINDS.items():
        if not isinstance(told[name], kind):
            raise InputError(f"{str(path)!r}: {name} is {told[name]!r}; expected {said}. Copy it again.")
    return told


def with_config(state: dict[str, Tensor], adapter: AdapterFile) -> None:
    """Put an adapter's configuration into a state that is kept as a checkpoint, so that it can be loaded by itself.

    Args:
        state: Tensors by name; one is added.
        adapter: What they belong to.
    """
    text = config_text(adapter).encode()
    state[CHECKPOINT_KEY] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _of_checkpoint(folder: Path) -> tuple[Any, dict[str, Tensor]] | None:
    """Return what a Trainer's checkpoint holds of an adapter, None if the folder is none."""
    path = folder / CHECKPOINT_NAME
    if (folder / CONFIG_NAME).exists() or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if CHECKPOINT_KEY not in file.keys():  # noqa: SIM118  (no dictionary)
                return None
            told = parse_json(bytes(file.get_tensor(CHECKPOINT_KEY).tolist()).decode())
            names = [name for name in file.keys() if name.startswith("edits.")]  # noqa: SIM118
            found = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is no whole safetensors file ({error}). Copy it again.") from error
    return told, {_saved_name(name): value for name, value in found.items()}


def _saved_name(name: str) -> str:
    """Return ``0.resid_post.U`` for ``edits.0-resid_post.U``."""
    _, site, rest = name.split(".", 2)
    return f"{site.replace('-', '.')}.{rest}"


def _read_steering(values: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> SteeringConfig:
    """Read an adapter's configuration, refusing before anything is built what the tensors beside it contradict."""
    plain = plain_values(SteeringConfig, values, f"{where}: steering.")
    seed, rank = plain.get("seed", 0), plain.get("rank")
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"{where}: steering.seed is {seed}; expected one of 64 bits. Copy it again.")
    if rank is not None and tensors and all(rank > max(value.shape, default=0) for value in tensors.values()):
        raise InputError(
            f"{where}: steering.rank is {rank}, more than any tensor in {WEIGHTS_NAME} has rows or columns. Copy the "
            "whole folder that was saved."
        )
    return SteeringConfig.from_dict({**values, **plain})


def lacks(missing: list[str], unknown: list[str]) -> str:
    """Return what is missing and what is there without a place, in words; one of the lists may be empty.

    Args:
        missing: Names that were expected and are not there.
        unknown: Names that are there and were not expected.

    Returns:
        Words to put after what they are said of, such as ``lacks 'a' and has unknown 'b'``.
    """
    parts = [f"lacks {some(missing)}"] if missing else []
    return " and ".join([*parts, f"has unknown {some(unknown)}"] if unknown else parts)


def require_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are not exactly those expected.

    Args:
        given: Tensors by name, as they were read.
        expected: Tensors by name, whose shapes and data types count.
        where: What holds the given ones, for messages.

    Raises:
        InputError: Some are missing, unknown, of another shape or data type, or hold NaN.
    """
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unknown:
        raise InputError(
            f"{where} {lacks(missing, unknown)}; expected the tensors of this adapter's "
            "sites and family. Use the folder that belongs to this configuration."
        )
    for name, value in given.items():
        wanted = expected[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise InputError(
                f"{where} holds {name!r} of shape {tuple(value.shape)} in {value.dtype}; expected "
                f"{tuple(wanted.shape)} in {wanted.dtype}. Use the folder that belongs to this configuration."
            )
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{where} holds NaN or infinite numbers in {name!r}; the training diverged. Train again.")
