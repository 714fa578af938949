"""An adapter in a folder: ``adapter_config.json``, ``adapter_model.safetensors``, and ``lora/`` if one is underneath.

The configuration says all that decides what the numbers mean: the edit's equation, the equation of every site, and
the model. Reading is strict: what does not fit is refused with what was expected.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.installed import require
from steerscope.models.site_map import SiteMap
from steerscope.sites import Site
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import FAMILIES
from steerscope.steering.identity import BaseIdentity, is_peft

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
LORA_FOLDER = "lora"
FORMAT = "steerscope steering"
VERSION = 1
_FIELDS = {"format", "format_version", "steerscope_version", "equation", "steering", "base_model", "sites", "lora"}


@dataclass(frozen=True)
class AdapterFile:
    """What a folder holds.

    Attributes:
        config: The adapter's configuration.
        base: The model it was trained for.
        sites: Per site, its equation in that model's layout.
        lora: Name of the LoRA underneath, if there is one.
        tensors: The edits' tensors by ``site.name``.
    """

    config: SteeringConfig
    base: BaseIdentity
    sites: Mapping[str, str]
    lora: str | None
    tensors: Mapping[str, Tensor]


def equations(site_map: SiteMap, sites: tuple[Site, ...]) -> dict[str, str]:
    """Return the equation of every site."""
    found = site_map.description.equations()
    return {str(site): found[site.kind] for site in sites}


def write(folder: Path, adapter: AdapterFile, model: nn.Module) -> None:
    """Write an adapter; ``model`` is the base model, whose LoRA goes along.

    Weights come first and each file appears whole: a folder with a configuration is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).unlink(missing_ok=True)  # of an earlier save, whose numbers are about to go
    if adapter.lora is not None:
        model.save_pretrained(str(folder / LORA_FOLDER), selected_adapters=[adapter.lora])  # type: ignore[operator]
        _name_base(lora_place(folder, adapter.lora), adapter.base.name)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in adapter.tensors.items()}
    replace_file(folder / WEIGHTS_NAME, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
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
    text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def _name_base(lora: Path, name: str) -> None:
    """Name the base model as the adapter does: PEFT writes where it was loaded from, which may be a path of ours."""
    path = lora / CONFIG_NAME
    told = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": name}
    replace_file(path, lambda new: new.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8"))


def lora_place(folder: Path, name: str) -> Path:
    """Return where an adapter's LoRA is: PEFT gives all but ``default`` a folder of their own."""
    return folder / LORA_FOLDER if name == "default" else folder / LORA_FOLDER / name


def replace_file(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file so that it appears whole, or stays what it was."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    write_to(unfinished)
    os.replace(unfinished, path)


def read(folder: Path) -> AdapterFile:
    """Read an adapter.

    Raises:
        InputError: There is none, a file is damaged, incomplete or of another format, or it stands on a LoRA and PEFT
            is not installed.
    """
    told = _read_config(folder)
    if told["lora"] is not None:
        require("train", f"the adapter in {str(folder)!r}, which stands on a LoRA,")
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise InputError(f"folder {str(folder)!r} has no {WEIGHTS_NAME}; copy the whole folder that was saved.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{str(path)!r} is no whole safetensors file ({error}); it was cut off or damaged. Copy it again."
        ) from error
    config = SteeringConfig.from_dict(told["steering"])
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
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        trained = " It looks like a checkpoint of a Trainer: resume from it, then call save_pretrained()."
        raise InputError(
            f"there is no adapter in {str(folder)!r}: {CONFIG_NAME} is missing. Give a folder that save_pretrained() "
            f"wrote.{trained if (folder / 'trainer_state.json').is_file() else ''}"
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
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
    if told.get("format_version") != VERSION:
        raise InputError(
            f"{str(path)!r} has format {told.get('format_version')!r}; this steerscope reads {VERSION}. "
            f"It was written by steerscope {told.get('steerscope_version')!r}: use that version."
        )
    if set(told) != _FIELDS or not all(isinstance(told[name], dict) for name in ("sites", "steering", "base_model")):
        raise InputError(f"{str(path)!r} has fields {sorted(told)}; expected {sorted(_FIELDS)}. Save it again.")
    return told


def require_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are not exactly those expected.

    Raises:
        InputError: Some are missing, unknown, of another shape or data type, or hold NaN.
    """
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unknown:
        raise InputError(
            f"{where} lacks {_some(missing)} and has unknown {_some(unknown)}; expected the tensors of this adapter's "
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


def _some(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def lora_underneath(model: nn.Module) -> str | None:
    """Return the name of the one LoRA that is active in a model.

    Raises:
        InputError: Several adapters are active.
    """
    if not is_peft(model):
        return None
    active = list(model.active_adapters)  # type: ignore[arg-type]
    if len(active) != 1:
        raise InputError(f"PEFT has the adapters {active} active; expected one, to be saved along. Set one active.")
    return str(active[0])


def with_lora(model: nn.Module, folder: Path, name: str, is_trainable: bool) -> nn.Module:
    """Return the model with the LoRA of an adapter's folder in it.

    Raises:
        InputError: Its files are missing or damaged.
    """
    from peft import PeftModel  # slow to load

    place = lora_place(folder, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of keys that do not fit; they are refused below
            wrapped = PeftModel.from_pretrained(model, str(place), adapter_name=name, is_trainable=is_trainable)
        missing, unknown = lora_differences(wrapped, name, set(load_file(place / WEIGHTS_NAME)))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot load the LoRA in {str(place)!r} ({reason}). Copy the whole folder again.") from error
    if missing or unknown:
        wrapped.unload()
        raise InputError(
            f"the LoRA in {str(place)!r} lacks {_some(missing)} and has unknown {_some(unknown)}. Copy the whole "
            "folder that was saved."
        )
    return wrapped


def lora_differences(wrapped: nn.Module, name: str, stored: set[str]) -> tuple[list[str], list[str]]:
    """Return which tensors of a PEFT adapter a file lacks, and which of the file's have no place in it."""
    from peft import get_peft_model_state_dict

    differ: list[tuple[list[str], list[str]]] = []
    # With embeddings or without, as the file was saved; left to itself PEFT would ask the hub which.
    for embeddings in (False, True):
        expected = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=embeddings))
        differ.append((sorted(expected - stored), sorted(stored - expected)))
    return min(differ, key=lambda two: len(two[0]) + len(two[1]))
