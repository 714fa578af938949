"""Put what was trained on a model: steering adapters and changed weights of this package, and what PEFT saved."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError, reason_of
from steerscope.files import read_object
from steerscope.folders import adapter_in
from steerscope.installed import require
from steerscope.models.load import LoadedModel
from steerscope.steering import SteeringModel, saving, weights
from steerscope.steering.peft_files import CONFIG_NAME as CONFIG
from steerscope.steering.peft_files import differences, instead_of_adapter, require_readable, stored_names


@dataclass(frozen=True)
class SavedAdapter:
    """What a folder says about its adapter before any model is loaded.

    Attributes:
        folder: Where it is.
        is_peft: PEFT wrote it; otherwise steerscope.
        method: The family of edits, PEFT's type, or how weights were trained.
        sites: Names of the edited sites; for PEFT none.
        rank: Rank, where it has one.
        settings: What else it says.
        changed: How many of the model's own numbers it replaces; zero for all that is added to a model.
    """

    folder: Path
    is_peft: bool
    method: str
    sites: tuple[str, ...]
    rank: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    changed: int = 0


def read_adapter(folder: str | Path) -> SavedAdapter:
    """Read what an adapter is; a run's folder stands for the adapter in it.

    Returns:
        What kind of adapter it is, where, and of which rank; no weights are read.

    Raises:
        InputError: There is none, a file is missing or damaged, its format is unknown, or it is PEFT's and PEFT is not
            installed.

    Cost: reads a small file and the head of the weights.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"there is no adapter folder {str(folder)!r}. Check the path.")
    place = adapter_in(place)
    if not (place / CONFIG).exists():
        raise InputError(
            f"{str(folder)!r} holds no adapter: {CONFIG} is missing. Give a folder that save_pretrained() wrote."
            f"{instead_of_adapter(place)}"
        )
    config = read_object(place / CONFIG, "the adapter's configuration", "Copy the adapter again.")
    stored_names(place)
    if "peft_type" in config:
        require("train", f"the PEFT adapter in {str(folder)!r}")
        require_readable(config, place / CONFIG)
        base = {k: config.get(k) for k in ("base_model_name_or_path", "target_modules", "lora_alpha", "bias")}
        if config.get("num_virtual_tokens"):
            raise InputError(
                f"the adapter in {str(folder)!r} ({config['peft_type']}) puts {config['num_virtual_tokens']} virtual "
                "tokens before every row, and results would depend on the batch that a text is in. Evaluate an adapter "
                "that adds none, a LoRA for example."
            )
        rank = config.get("r")
        return SavedAdapter(
            place, True, str(config["peft_type"]).lower(), (), rank if type(rank) is int else None, base
        )
    if config.get("format") == weights.FORMAT:
        told, _ = weights.read_changed(place)
        changed = 0 if told["added"] else int(told["numbers"])
        return SavedAdapter(place, False, told["method"], (), None, changed=changed)
    told = saving.read(place).config.to_dict()
    sites, rank = tuple(told.pop("sites")), told.pop("rank")
    return SavedAdapter(place, False, f"steering {told['family']}", sites, rank, told)


def with_adapter(loaded: LoadedModel, adapter: SavedAdapter) -> nn.Module:
    """Return the model with the adapter on it, in evaluation mode and frozen.

    A steering adapter knows its model and refuses another one. PEFT's files name their model but hold no hash: a
    model of the same shapes with other weights cannot be told from the right one, other shapes and layers are refused.

    Args:
        loaded: The model.
        adapter: What :func:`read_adapter` returned.

    Returns:
        The model or a wrapper of it; ``loaded`` itself is changed by a PEFT adapter.

    Raises:
        InputError: The adapter is of another model.
    """
    if not adapter.is_peft and not adapter.sites:
        return weights.with_changed_weights(loaded, adapter.folder).eval()
    if not adapter.is_peft:
        return SteeringModel.from_pretrained(loaded, adapter.folder).eval()
    from peft import PeftModel  # slow to load

    named = adapter.settings.get("base_model_name_or_path")
    other = f"is not of model {loaded.identity.name!r} (it names {named!r} as its model)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of keys that do not fit; they are refused below
        try:
            model: Any = PeftModel.from_pretrained(loaded.model, str(adapter.folder))
        except Exception as error:  # shapes, target modules, formats: no common type
            raise InputError(f"the adapter in {str(adapter.folder)!r} {other}: {reason_of(error)}") from error
    missing, unknown = differences(model, "default", stored_names(adapter.folder))
    if missing or unknown:
        raise InputError(
            f"the adapter in {str(adapter.folder)!r} {other}: {len(missing)} tensors that this model needs "
            f"are missing and {len(unknown)} have no place in it. Name the model it was trained on."
        )
    found: nn.Module = model.eval()
    return found


@contextmanager
def attached(loaded: LoadedModel, adapter: SavedAdapter) -> Iterator[nn.Module]:
    """Give the model with the adapter on it, and take the adapter off at the end.

    Args:
        loaded: The model.
        adapter: Of this model.

    Yields:
        The model with the adapter, in evaluation mode.

    Raises:
        InputError: The adapter is of another model.

    Cost: of changed weights, a copy of those of the model that they replace.
    """
    replaced: dict[str, Tensor] = {}
    added: tuple[str, ...] = ()
    if not adapter.is_peft and not adapter.sites:
        told, _ = weights.read_changed(adapter.folder)
        added, names = tuple(told["added"]), set(told["changed"]) - set(told["added"])
        own = dict(loaded.model.named_parameters())
        replaced = {name: own[name].detach().clone() for name in names & set(own)}
    model: Any = with_adapter(loaded, adapter)
    try:
        yield model
    finally:
        if adapter.is_peft or adapter.sites:
            model.unload()
        else:
            own = dict(loaded.model.named_parameters())
            with torch.no_grad():
                for name, value in replaced.items():
                    own[name].copy_(value)
            weights.remove_biases(loaded.model, added)
