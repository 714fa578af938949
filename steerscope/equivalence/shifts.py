r"""The first-order map from weight updates to activation shifts: a Jacobian-vector product through the real model.

.. math:: \delta h_s = J_{h_s, W}\,[\Delta W] = \left.\frac{d}{dt} h_s(W + t\,\Delta W)\right|_{t=0}

by forward-mode differentiation (``torch.func.jvp``): one pass, any update, any number of sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from steerscope.errors import InputError, did_you_mean
from steerscope.finite import require_finite
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.hooks import reading
from steerscope.models.offloaded import require_weights_in_memory
from steerscope.models.packed import require_plain_weights
from steerscope.models.readings import Readings
from steerscope.models.site_map import HasSites, SiteMap, model_and_sites
from steerscope.sites import Site

LOGITS = "logits"

Weights = dict[str, Tensor]
# By what was asked for: sites, under every name they have, and the logits.
Shifts = Readings[Site | str]


def first_order_shift(
    model: HasSites | nn.Module,
    weight_update: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    at: Sequence[Site | str] = (LOGITS,),
) -> Shifts:
    r"""Predict how a weight update moves the tensors at sites, and the logits, to first order.

    .. math:: \delta h_{b,t,a} = \sum_p \sum_j \frac{\partial h_{b,t,a}}{\partial \theta_{p,j}}\, \Delta\theta_{p,j}

    The error is O(\|update\|^2) within one activation pattern, which :func:`remainder_slope` measures.

    Args:
        model: A loaded or steered model, or one of transformers, in evaluation mode.
        weight_update: Change per parameter name (``model.named_parameters()``); absent names do not change.
        inputs: Keyword arguments of the model: ``input_ids`` and, with padding, ``attention_mask`` and
            ``position_ids``.
        at: Sites such as ``"12.resid_post"``, or ``"logits"``.

    Returns:
        Per entry of ``at`` the predicted change (``batch token channel``), in the units of that tensor; zero at
        padding (where ``attention_mask`` is 0). A site is found under its other names too.

    Raises:
        InputError: An unknown parameter name, a wrong shape, a model in training mode, an unknown site, or a shift that
            is NaN or infinite.
        UnsupportedModelError: The attention backend has no forward derivative and cannot be switched.

    Cost: about three forward passes; the attention runs in its eager form during the call.
    Source: P1 in docs/theory.md, extended to all weights and to the logits.
    """
    inner, site_map = model_and_sites(model)
    weights, update = _checked(inner, weight_update)
    names = _resolved(site_map, at)
    with forward_differentiable_attention(inner):
        shift: tuple[Tensor, ...] = jvp(_tensors_at(inner, site_map, inputs, names), (weights,), (update,))[1]
    return _by_name(site_map, at, [value.detach() for value in shift], "the predicted shift")


def measured_shift(
    model: HasSites | nn.Module,
    weight_update: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    at: Sequence[Site | str] = (LOGITS,),
    scale: float = 1.0,
) -> Shifts:
    """Return how far ``scale * weight_update`` really moves the tensors at sites; the model is left as it was.

    Errors as in :func:`first_order_shift`.

    Args:
        model: A causal language model in evaluation mode.
        weight_update: Change per parameter name at scale 1.
        inputs: Keyword arguments of the model, as in :func:`first_order_shift`.
        at: Sites, or ``"logits"``.
        scale: What the update is multiplied by.

    Returns:
        Per entry of ``at`` the change ``(batch token channel)``, zero at padding.

    Cost: two forward passes.
    """
    return next(measured_shifts(model, weight_update, inputs, at, (scale,)))


def measured_shifts(
    model: HasSites | nn.Module,
    weight_update: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    at: Sequence[Site | str],
    scales: Iterable[float],
) -> Iterator[Shifts]:
    """Yield what :func:`measured_shift` returns for one scale after another.

    Args:
        model: A causal language model in evaluation mode.
        weight_update: Change per parameter name at scale 1.
        inputs: Keyword arguments of the model, as in :func:`first_order_shift`.
        at: Sites, or ``"logits"``.
        scales: What the update is multiplied by, one after another.

    Yields:
        Per entry of ``at`` the change ``(batch token channel)``, zero at padding.

    Cost: one forward pass, and one per scale.
    """
    inner, site_map = model_and_sites(model)
    weights, update = _checked(inner, weight_update)
    run = _tensors_at(inner, site_map, inputs, _resolved(site_map, at))

    def at_scale(scale: float) -> tuple[Tensor, ...]:
        with torch.no_grad(), forward_differentiable_attention(inner):
            return run({name: torch.add(weights[name], update[name], alpha=scale) for name in weights} if scale else {})

    before = at_scale(0.0)
    for scale in scales:
        after = at_scale(scale)
        yield _by_name(site_map, at, [new - old for new, old in zip(after, before, strict=True)], "the shift")


def _checked(model: nn.Module, weight_update: Mapping[str, Tensor]) -> tuple[Weights, Weights]:
    """Return the weights that change and their changes, in the weights' dtype and device."""
    require_weights_in_memory(model, "a shift under a weight update")
    require_plain_weights(model, "a shift under a weight update")
    if model.training:
        raise InputError("the model is in training mode, where dropout makes shifts random. Call model.eval().")
    if not weight_update:
        raise InputError("weight_update is empty; expected at least one parameter name with its change.")
    named = dict(model.named_parameters())
    for name, change in weight_update.items():
        if name not in named:
            tied = " (a tied weight goes by the name of its first use)" if "head" in name else ""
            raise InputError(
                f"weight_update names {name!r}, which this model does not have{tied}."
                f"{did_you_mean(name, list(named))} Valid names: model.named_parameters()."
            )
        if change.shape != named[name].shape:
            raise InputError(
                f"weight_update[{name!r}] has shape {tuple(change.shape)}; expected {tuple(named[name].shape)}."
            )
    weights = {name: named[name].detach() for name in weight_update}
    return weights, {name: change.detach().to(weights[name]) for name, change in weight_update.items()}


def _by_name(site_map: SiteMap, at: Sequence[Site | str], values: Sequence[Tensor], what: str) -> Shifts:
    found: Shifts = Readings(site_map, [name for name in at if name != LOGITS])
    for name, value in zip(at, values, strict=True):
        require_finite(f"{what} of '{name}'", value)
        found[name] = value
    return found


def _resolved(site_map: SiteMap, at: Sequence[Site | str]) -> tuple[str, ...]:
    return tuple(LOGITS if name == LOGITS else str(site_map.resolve(name)) for name in at)


def _tensors_at(
    model: nn.Module, site_map: SiteMap, inputs: Mapping[str, Tensor], names: tuple[str, ...]
) -> Callable[[Weights], tuple[Tensor, ...]]:
    """Return the pure function from weights to the tensors at ``names``, zero at padding.

    Padding is cleared because its values mean nothing and its derivatives are wrong: eager attention sees a fully
    masked row there.
    """
    sites = [name for name in names if name != LOGITS]
    mask = inputs.get("attention_mask")
    real = None if mask is None else mask[..., None].bool()

    def run(weights: Weights) -> tuple[Tensor, ...]:
        with reading(site_map, sites) as found:
            output = functional_call(model, weights, kwargs={**inputs, "use_cache": False})
        values = {str(site): value for site, value in found.items()} | {LOGITS: output.logits}
        if real is None:
            return tuple(values[name] for name in names)
        return tuple(torch.where(real, values[name], 0.0) for name in names)

    return run
