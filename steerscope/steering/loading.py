"""Putting a saved adapter on the model it was trained for, strictly, or leaving that model as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from steerscope.errors import InputError
from steerscope.models.description import BlockDescription
from steerscope.models.load import LoadedModel
from steerscope.models.site_map import SiteMap, find_sites
from steerscope.models.wrappers import is_peft
from steerscope.steering import beneath, saving
from steerscope.steering.adapters import Adapter
from steerscope.steering.config import SteeringConfig
from steerscope.steering.identity import identify, require_same
from steerscope.steering.named import NamedAdapters

Steered = TypeVar("Steered", bound=NamedAdapters)


def load_onto(
    model: nn.Module | LoadedModel,
    place: Path,
    made: Callable[[nn.Module, SteeringConfig, SiteMap, LoadedModel | None, str], Steered],
    *,
    adapter_name: str,
    is_trainable: bool,
    check_weights: bool,
    description: BlockDescription | None,
) -> Steered:
    """Read the adapter in a folder and put it on a model; see :meth:`SteeringModel.from_pretrained`.

    Args:
        model: The base model, without PEFT.
        place: What :meth:`SteeringModel.save_pretrained` wrote.
        made: The class of the result.
        adapter_name: What the adapter is called on the model.
        is_trainable: Whether training continues.
        check_weights: Whether weights are compared.
        description: How the model's blocks are built, for a family steerscope does not know.

    Returns:
        The steered model, in evaluation mode unless ``is_trainable``.

    Raises:
        InputError: No adapter, a damaged or incomplete file, another model or another revision.
    """
    adapter = saving.read(place)
    loaded = model if isinstance(model, LoadedModel) else None
    inner = model.model if isinstance(model, LoadedModel) else model
    if is_peft(inner) or isinstance(inner, NamedAdapters):
        raise InputError(
            f"an adapter is put on its base model, got {type(inner).__name__}, which has an adapter already. Give "
            "the plain model; a LoRA that belongs to the adapter is loaded from its folder."
        )
    site_map = find_sites(inner, description or (loaded.site_map.description if loaded else None))
    brought = beneath.overwritten_by(inner, place, adapter.lora) if adapter.lora is not None else frozenset()
    found = identify(inner, site_map, loaded, weights=check_weights, without=brought)
    if brought and found.fingerprint != adapter.base.fingerprint:  # saved when such biases stayed as they were
        found = identify(inner, site_map, loaded, weights=check_weights)
    require_same(adapter.base, found, weights=check_weights)
    plain, before = inner, beneath.copies(inner, brought)
    if adapter.lora is not None:
        inner = beneath.put_beneath(inner, place, adapter.lora, is_trainable)
        site_map = find_sites(inner, site_map.description)
    steering: Steered | None = None
    try:
        steering = made(inner, adapter.config, site_map, loaded, adapter_name)
        _fill(steering.adapter(adapter_name), adapter, site_map)
    except BaseException:
        if steering is not None:
            steering.unload()  # type: ignore[operator]
        if adapter.lora is not None:
            beneath.take_away(inner)
            beneath.restore(plain, before)
        raise
    if not is_trainable:
        steering.requires_grad_(False)
        steering.eval()
    return steering


def load_beside(
    steering: NamedAdapters, place: Path, adapter_name: str, *, is_trainable: bool, check_weights: bool
) -> Adapter:
    """Read the adapter in a folder for a model that has one already; see :meth:`SteeringModel.load_adapter`.

    Args:
        steering: The steered model; nothing is changed in it.
        place: What :meth:`SteeringModel.save_pretrained` wrote.
        adapter_name: What the adapter is to be called.
        is_trainable: Whether training continues.
        check_weights: Whether weights are compared.

    Returns:
        The adapter, without hooks.

    Raises:
        InputError: No adapter, a damaged or incomplete file, another model or revision, or a LoRA underneath it or
            underneath the model.
    """
    file = saving.read(place)
    if file.lora is not None or is_peft(steering.base_model):
        trained_on = "a LoRA of its own" if file.lora else "the plain model"
        here = "an adapter of PEFT" if is_peft(steering.base_model) else "no LoRA"
        raise InputError(
            f"the adapter in {str(place)!r} was trained on {trained_on}, and this model has {here} underneath. "
            "Load it by itself with SteeringModel.from_pretrained(plain_model, folder)."
        )
    inner, site_map = steering.base_model, steering.site_map
    require_same(file.base, steering.identity(weights=check_weights), weights=check_weights)
    adapter = Adapter(adapter_name, file.config, find_sites(inner, site_map.description))
    _fill(adapter, file, site_map)
    adapter.edits.requires_grad_(is_trainable)
    return adapter


def _fill(adapter: Adapter, file: saving.AdapterFile, site_map: SiteMap) -> None:
    """Put a file's numbers into an adapter as it starts.

    Raises:
        InputError: Sites of these names are others in this model, or the tensors are not those of the configuration.
    """
    found = saving.equations(site_map, adapter.sites)
    if found != dict(file.sites):
        raise InputError(
            f"the adapter edits {dict(file.sites)}, and this model's sites of these names are {found}. Use the model "
            "it was trained for."
        )
    saving.require_tensors(file.tensors, adapter.tensors(), saving.WEIGHTS_NAME)
    adapter.fill(file.tensors)
    adapter.strength = file.strength
