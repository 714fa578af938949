"""An adapter in a folder: ``adapter_config.json``, ``adapter_model.safetensors``, and ``lora/`` if one is underneath.

The configuration says all that decides what the numbers mean: the edit's equation, the equation of every site, and
the model. Reading is strict: what does not fit is refused with what was expected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.files import json_of, write_text, written_aside
from steerscope.finite import require_finite
from steerscope.folders import STEERING_FORMAT, Kind, require_folder_for
from steerscope.installed import require
from steerscope.models.site_map import SiteMap
from steerscope.option_types import plain_values
from steerscope.sites import Site
from steerscope.steering.adapters import checked_strength
from steerscope.steering.beneath import LORA_FOLDER, lora_place, name_base, some, write_beneath
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import FAMILIES
from steerscope.steering.identity import BaseIdentity
from steerscope.steering.peft_files import CONFIG_NAME, WEIGHTS_NAME, instead_of_adapter, stored_names

FORMAT = STEERING_FORMAT
VERSION = 1
_FIELDS = {"format", "format_version", "steerscope_version", "equation", "steering", "base_model", "sites", "lora"}
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("sites", "steering", "base_model"), (dict, "an object")),
    **dict.fromkeys(("equation", "steerscope_version"), (str, "a text")),
    "lora": (str | None, "the name of a LoRA, or null"),
}


@dataclass(frozen=True)
class AdapterFile:
    """What a folder holds.

    Attributes:
        config: The adapter's configuration.
        base: The model it was trained for.
        sites: Per site, its equation in that model's layout.
        lora: Name of the LoRA underneath, if there is one.
        tensors: The edits' tensors by ``site.name``.
        strength: What is added is multiplied by it.
    """

    config: SteeringConfig
    base: BaseIdentity
    sites: Mapping[str, str]
    lora: str | None
    tensors: Mapping[str, Tensor]
    strength: float = 1.0


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


def as_folder(given: object) -> Path:
    """Return a path that a caller gave for a folder.

    Raises:
        InputError: It is none.
    """
    if not isinstance(given, str | os.PathLike) or not (text := os.fspath(given)) or "\0" in str(text):
        raise InputError(f"got {given!r} for a folder; expected its path, a string or pathlib.Path: 'my-adapter'.")
    return Path(given)


def write(folder: Path, adapter: AdapterFile, model: nn.Module) -> None:
    """Write an adapter; ``model`` is the base model, whose LoRA goes along.

    All files are written aside before an earlier adapter is touched, and a folder with a configuration is complete.

    Args:
        folder: Where to write; created where it does not exist.
        adapter: Configuration and tensors.
        model: The base model, whose LoRA goes along.

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


def _write(folder: Path, adapter: AdapterFile, model: nn.Module) -> None:
    if adapter.lora is not None:
        write_beneath(model, folder, adapter.lora)
        place = lora_place(folder, adapter.lora)
        named = name_base(place, adapter.base.name)
        write_text(place / CONFIG_NAME, named)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in adapter.tensors.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    told = {
        "format": FORMAT,
        "format_version": VERSION,
        "steerscope_version": metadata.version("steerscope"),
        "equation": FAMILIES[adapter.config.family].equation,
        "steering": adapter.config.to_dict(),
        "base_model": adapter.base.as_dict(),
        "sites": dict(adapter.sites),
        "lora": adapter.lora,
    }
    if adapter.strength != 1:  # only where it says something: versions that know no strength refuse the file then
        told["strength"] = adapter.strength
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(folder / CONFIG_NAME, text)


def read(folder: Path) -> AdapterFile:
    """Read an adapter.

    Raises:
        InputError: There is none, a file is damaged, incomplete or of another format, or it stands on a LoRA and PEFT
            is not installed.
    """
    told = _read_config(folder)
    if told["lora"] is not None:
        require("train", f"the adapter in {str(folder)!r}, which stands on a LoRA,")
    stored_names(folder)
    tensors = load_file(folder / WEIGHTS_NAME)
    config = _read_steering(told["steering"], tensors, repr(str(folder / CONFIG_NAME)))
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
    try:
        told = json_of(path)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error}); it was cut off or damaged. Copy it again."
        ) from error
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
