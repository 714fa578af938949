"""Writing an adapter into the model's own weights, where they can hold it exactly (:mod:`steerscope.steering.holding`).

A LoRA underneath is merged before the edits, which act on what it writes.

Not merged: nonlinear edits; edits of some tokens alone, since weights act on all; anything at the stream's entry
(the embeddings are shared with the output). Source: P13 to P16 for vectors and biases.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.finite import require_finite
from steerscope.models.blocks import linear_weight
from steerscope.models.offloaded import require_weights_in_memory
from steerscope.models.packed import require_plain_weights
from steerscope.models.wrappers import acting_layer, is_peft, language_model, tuner_layers
from steerscope.sites import Site
from steerscope.steering.beneath import active_adapter
from steerscope.steering.families import Affine
from steerscope.steering.holding import Holder, held_by, lacks_bias, weight_of, why_not_everywhere
from steerscope.steering.peft_types import UNMERGED, type_name

if TYPE_CHECKING:
    from steerscope.steering.model import SteeringModel


@dataclass(frozen=True)
class Step:
    """One edit, its strength in its numbers, and the linear maps that hold it."""

    site: Site
    edit: Affine
    held: Holder


def merge(steering: SteeringModel, *, make_biases: bool = False) -> None:
    """Write all edits of a steering model into its weights.

    Args:
        steering: The model; its hooks stay, so remove them next.
        make_biases: Give linear maps a bias where they lack one. It lives in the module: a copy saved and loaded
            again has it only if the model's configuration declares it.

    Raises:
        InputError: An edit cannot be held; nothing was changed.

    Cost: one product of two ``width x width`` matrices or smaller per edit. Weights in bfloat16 hold the result to
    bfloat16's rounding.
    """
    require_weights_in_memory(steering.base_model, "merging an adapter")
    require_plain_weights(steering.base_model, "merging an adapter")
    steps = steps_of(steering)
    lacking = [step.site for step in steps if step.edit.vector is not None and any(map(lacks_bias, step.held.maps))]
    if lacking and not make_biases:
        raise InputError(
            f"the edit at '{lacking[0]}' needs a bias that the model's linear map there does not have. Pass "
            "make_biases=True to give it one (a saved copy loses it unless the model's configuration declares biases), "
            "or train with bias=False."
        )
    if is_peft(steering.base_model):
        _require_mergeable(steering.base_model)
    if lacking:
        warnings.warn(
            f"linear maps at {len(lacking)} sites got a bias that the model's configuration may not declare; a copy "
            "saved and loaded again would lose it without a word from transformers. Check before sharing it.",
            stacklevel=3,
        )
    if is_peft(steering.base_model):
        # Not merge_adapter() and unload(): that drops trained copies of modules and puts the originals back.
        steering.base_model.merge_and_unload()  # type: ignore[operator]
    with torch.no_grad():
        for step in steps:
            for module in step.held.maps:
                (_before if step.held.reads else _after)(acting_layer(module), step.edit)


def _require_mergeable(wrapped: Any) -> None:
    """Refuse what PEFT would refuse halfway, merge falsely, or merge although it does not act.

    Raises:
        InputError: The adapter underneath cannot be merged, or is switched off.
    """
    name = active_adapter(wrapped)
    config = wrapped.peft_config[name]
    if (kind := type_name(config)) in UNMERGED or getattr(config, "alora_invocation_tokens", None):
        kind = "aLoRA" if kind == "LORA" else kind
        raise InputError(
            f"the model's weights cannot hold the PEFT adapter underneath ({kind}), so it cannot be merged. Keep it "
            "and the edits as adapters."
        )
    layers: list[Any] = list(tuner_layers(wrapped))
    if any(layer.disable_adapters for layer in layers):
        raise InputError(
            "the LoRA underneath is switched off; merged, it would act. Switch it on (enable_adapter_layers()), or "
            "unload() the edits and PEFT's wrapper and put the edits on the plain model."
        )
    for layer in layers:
        biased = any(getattr(part, "bias", None) is not None for part in getattr(layer, "lora_B", {}).values())
        if biased and getattr(layer.get_base_layer(), "bias", None) is None:
            raise InputError(
                "the LoRA underneath writes a bias (lora_bias=True) where the model's linear map has none, so its "
                "weights cannot hold it. Keep it as an adapter, or train it without lora_bias."
            )
    model: Any = language_model(wrapped)
    tied = [get() for get in (model.get_input_embeddings, model.get_output_embeddings)]
    are_tied = None not in tied and linear_weight(acting_layer(tied[0])) is linear_weight(acting_layer(tied[1]))
    # A layer of PEFT that trains tokens replaces the rows of both; one that adds to a map would add to the other.
    if are_tied and any(hasattr(one, "merge") and not hasattr(one, "trainable_tokens_delta") for one in tied):
        raise InputError(
            "the adapter underneath changes the embeddings, whose weights also make the logits; merged, it would "
            "change both. Keep it as an adapter."
        )


def steps_of(steering: SteeringModel) -> list[Step]:
    """Return how weights and biases hold the edits that act, in the order of computation.

    Raises:
        InputError: They cannot; the message says why.
    """
    if steering.steering_config.positions != "all":
        raise InputError(why_not_everywhere(steering.steering_config.positions))
    return [_step(steering, site) for site in steering.sites]


def _step(steering: SteeringModel, site: Site) -> Step:
    edit = steering.edit_at(site).affine().times(steering.adapter().strength)
    if site.head is not None:
        edit = _of_all_heads(edit, site.head, steering.site_map.n_heads)
    held = held_by(site, steering.site_map, has_matrix=edit.up is not None)
    for part in (edit.up, edit.down, edit.vector):
        if part is not None:
            advice = "Its training diverged, or its file is damaged: train it again."
            require_finite(f"the edit at '{site}'", part, advice=advice)
    if edit.vector is not None and held.scale != 1:
        # What is added to the stream is a multiple of what the map writes; M of the multiple is the multiple of M.
        edit = replace(edit, vector=edit.vector / held.scale)
    return Step(site, edit, held)


def _of_all_heads(edit: Affine, head: int, n_heads: int) -> Affine:
    """Return the edit of one head as an edit of all heads' channels."""

    def wide(part: Tensor | None, axis: int) -> Tensor | None:
        if part is None:
            return None
        width = part.shape[axis]
        shape = [*part.shape]
        shape[axis] = n_heads * width
        whole = part.new_zeros(shape)
        whole.narrow(axis, head * width, width).copy_(part)
        return whole

    return Affine(wide(edit.up, 0), wide(edit.down, 1), wide(edit.vector, 0))


def _add_to_bias(module: nn.Module, vector: Tensor) -> None:
    weight = linear_weight(module)
    if lacks_bias(module):
        zero = torch.zeros(len(vector), dtype=weight.dtype, device=weight.device)
        module.register_parameter("bias", nn.Parameter(zero, requires_grad=weight.requires_grad))
    bias = module.bias
    assert isinstance(bias, Tensor)
    bias.copy_(bias + vector.to(bias.device))


def _before(module: nn.Module, edit: Affine) -> None:
    """Let a map see ``x + M x + c``: ``W (I + M)`` and ``b + W c``."""
    weight = weight_of(module)
    old = weight.double()  # of a float64 weight no copy but itself: the bias needs it before it changes
    if edit.vector is not None:
        _add_to_bias(module, old @ edit.vector.to(old))
    if edit.matrix is not None:
        weight.copy_(old + old @ edit.matrix.to(old))


def _after(module: nn.Module, edit: Affine) -> None:
    """Let a map write ``y + M y + c``: ``(I + M) W`` and ``(I + M) b + c``."""
    weight = weight_of(module)
    if edit.matrix is not None:
        matrix = edit.matrix.to(device=weight.device, dtype=torch.float64)
        weight.copy_(weight.double() + matrix @ weight.double())
        if not lacks_bias(module):
            bias = module.bias
            assert isinstance(bias, Tensor)
            _add_to_bias(module, matrix @ bias.double())
    if edit.vector is not None:
        _add_to_bias(module, edit.vector)
