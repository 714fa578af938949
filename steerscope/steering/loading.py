"""Putting a saved adapter on the model it was trained for, strictly, or leaving that model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from steerscope.errors import InputError
from steerscope.models.description import BlockDescription
from steerscope.models.load import LoadedModel
from steerscope.models.site_map import find_sites
from steerscope.models.wrappers import is_peft
from steerscope.steering import beneath, saving
from steerscope.steering.identity import identify, require_same

if TYPE_CHECKING:
    from steerscope.steering.model import SteeringModel


def load_onto(
    model: nn.Module | LoadedModel,
    place: Path,
    made: type[SteeringModel],
    *,
    is_trainable: bool,
    check_weights: bool,
    description: BlockDescription | None,
) -> SteeringModel:
    """Read the adapter in a folder and put it on a model; see :meth:`SteeringModel.from_pretrained`.

    Args:
        model: The base model, without PEFT.
        place: What :meth:`SteeringModel.save_pretrained` wrote.
        made: The class of the result.
        is_trainable: Whether training continues.
        check_weights: Whether weights are compared.
        description: How the model's blocks are built, for a family steerscope does not know.

    Returns:
        The steered model, in evaluation mode unless ``is_trainable``.

    Raises:
        InputError: No adapter, a damaged or incomplete file, another model or another revision.
    """
    from steerscope.steering.model import SteeringModel  # which imports this file

    adapter = saving.read(place)
    loaded = model if isinstance(model, LoadedModel) else None
    inner = model.model if isinstance(model, LoadedModel) else model
    if is_peft(inner) or isinstance(inner, SteeringModel):
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
    steering: SteeringModel | None = None
    try:
        steering = made(inner, adapter.config, site_map, loaded)
        if saving.equations(site_map, steering.sites) != dict(adapter.sites):
            raise InputError(
                f"the adapter edits {dict(adapter.sites)}, and this model's sites of these names are "
                f"{saving.equations(site_map, steering.sites)}. Use the model it was trained for."
            )
        saving.require_tensors(adapter.tensors, steering.steering_tensors(), saving.WEIGHTS_NAME)
    except BaseException:
        if steering is not None:
            steering.unload()
        if adapter.lora is not None:
            beneath.take_away(inner)
            beneath.restore(plain, before)
        raise
    for site in steering.sites:
        prefix = f"{site}."
        own = {k.removeprefix(prefix): v for k, v in adapter.tensors.items() if k.startswith(prefix)}
        steering.edit_at(site).load_state_dict(own)
    steering.mark_ready()
    if not is_trainable:
        steering.requires_grad_(False)
        steering.eval()
    return steering
