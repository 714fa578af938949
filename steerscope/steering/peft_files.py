"""What a folder written by PEFT says, read before PEFT sees it: nothing is unpickled, nothing is left out silently."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from steerscope.errors import InputError
from steerscope.files import read_object
from steerscope.steering.peft_types import type_name

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# Options that make PEFT read other files, or import a module, when an adapter is loaded.
_POINTERS = ("adapters", "prompt_tuning_init_state_dict_path", "megatron_config", "shadow_model")


def stored_names(folder: Path) -> set[str]:
    """Return the names of the tensors in an adapter's folder.

    Raises:
        InputError: The weights are missing, damaged, or in a form that is not read.

    Cost: reads the head of the file.
    """
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except FileNotFoundError as error:
        raise InputError(f"{str(folder)!r} has no {WEIGHTS_NAME}{_instead_of_weights(folder)}") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(path)!r} is no whole safetensors file ({error}). Copy it again.") from error


def _instead_of_weights(folder: Path) -> str:
    """Say which other form of weights a folder holds, and what to do."""
    if (folder / "adapter_model.bin").exists():
        return (
            ": its weights are a pickle (adapter_model.bin, as older versions of PEFT wrote), which could run code and "
            "is not read. If you trust it, load it with PEFT and call save_pretrained(folder, safe_serialization=True)."
        )
    sharded = sorted(path.name for path in folder.glob("adapter_model*") if path.name != WEIGHTS_NAME)
    if sharded:
        return f" but {sharded[0]}; weights in several files or another form are not read. Save them as one file."
    whole = [name for name in _WHOLE_MODEL if (folder / name).exists()]
    if whole:
        return f" but {whole[0]}, the weights of a whole model; give the folder as the model, or the adapter's own."
    return "; copy the whole folder that was saved."


_WHOLE_MODEL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def instead_of_adapter(folder: Path) -> str:
    """Say what a folder without ``adapter_config.json`` is, and what to give; empty if nothing is known."""
    if (folder / "trainer_state.json").is_file():
        return (
            " It looks like a checkpoint of a Trainer: load it with SteeringModel.from_pretrained(), or resume from it "
            "if it does not say what it holds, then call save_pretrained()."
        )
    within = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
    if within:
        have = "subfolders {} have one each" if len(within) > 1 else "subfolder {} has one"
        return f" Its {have.format(', '.join(within[:4]))}: give that."
    if any((folder / name).exists() for name in _WHOLE_MODEL):
        return " It holds the weights of a whole model: give it as the model, without an adapter."
    return ""


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Return what the configuration of a PEFT adapter says.

    Raises:
        InputError: It is missing or damaged, of a type that the installed PEFT does not know, holds options that it
            would ignore, or makes it read other files.
    """
    path = folder / CONFIG_NAME
    told = read_object(path, "the adapter's configuration", "Copy the adapter again.")
    if "peft_type" not in told:
        raise InputError(f"{str(path)!r} names no peft_type, so it is no adapter of PEFT. Copy the adapter again.")
    require_readable(told, path)
    return told


def require_readable(told: Mapping[str, Any], path: Path) -> None:
    """Refuse a PEFT configuration that the installed PEFT would read as something else than was saved.

    Args:
        told: What the file says.
        path: The file, for messages.

    Raises:
        InputError: Its type or one of its options is unknown to the installed PEFT, or it points to other files.
    """
    from dataclasses import fields

    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # slow to load

    name = type_name(told)
    known = {str(getattr(one, "value", one)): made for one, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    installed = f"the installed PEFT ({metadata.version('peft')})"
    if name not in known:
        raise InputError(
            f"{str(path)!r} has peft_type {name!r}, which {installed} does not know. Install "
            f"{_writer(told)}, or check the file."
        )
    options = {one.name for one in fields(known[name])} | {"peft_version", "auto_mapping", "runtime_config"}
    # PEFT drops what it does not know with a warning; where it says nothing (None, False, empty), nothing is lost.
    ignored = sorted(key for key, value in told.items() if key not in options and value not in (None, False, "none"))
    ignored = [key for key in ignored if told[key] not in ({}, [], "")]
    if ignored:
        raise InputError(
            f"{str(path)!r} sets {ignored[0]}={told[ignored[0]]!r}, which {installed} would ignore. Install "
            f"{_writer(told)}."
        )
    for key in _POINTERS:
        if told.get(key) and not (key == "shadow_model" and told[key] == "mirror"):
            raise InputError(
                f"{str(path)!r} sets {key}, by which PEFT would read other files or run other modules while loading. "
                "Load it with PEFT, if you trust it, and train an adapter that stands alone."
            )


def _writer(told: Mapping[str, Any]) -> str:
    version = told.get("peft_version")
    return f"PEFT {version} or newer, which wrote it" if isinstance(version, str) else "the version that wrote it"


def differences(wrapped: Any, name: str, stored: set[str]) -> tuple[list[str], list[str]]:
    """Return which tensors of a PEFT adapter a file lacks, and which of the file's have no place in it.

    Args:
        wrapped: The model with the adapter.
        name: Of the adapter.
        stored: Names of the tensors in the file.

    Returns:
        Both, sorted.
    """
    from peft import get_peft_model_state_dict

    differ: list[tuple[list[str], list[str]]] = []
    # With embeddings or without, as the file was saved; left to itself PEFT would ask the hub which.
    for embeddings in (False, True):
        expected = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=embeddings))
        differ.append((sorted(expected - stored), sorted(stored - expected)))
    return min(differ, key=lambda two: len(two[0]) + len(two[1]))
