"""The dense, slow, obviously right reference: what every fast path must equal on small models.

It shares no code with the fast paths. Sites are edited without hooks: one block's ``forward`` is replaced for
one run by the block's equation, written out by hand in :mod:`.reference_blocks`. Derivatives are dense, by
autograd one row at a time or by central differences. For tests and small cases only; float64 recommended
(inside ``steerscope.models.true_float64``, because transformers models hide float32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from steerscope.errors import InputError, UnsupportedModelError, did_you_mean
from steerscope.sites import Site, SiteKind
from tests.equivalence.reference_blocks import BLOCKS, HEADS

# From the tensor at a site (batch token channel) to what is added there.
Edit = Callable[[Tensor], Tensor]
# From logits (batch token vocabulary) to the numbers that are differentiated (rows).
Outputs = Callable[[Tensor], Tensor]
Method = Literal["autograd", "difference"]
Result = TypeVar("Result", Tensor, Mapping[Any, Tensor], tuple[Tensor, ...])


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def _run(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    site: Site,
    at_site: Callable[[Tensor], Tensor],
) -> Tensor:
    """Run the model with the block of ``site`` written out; ``at_site`` maps the tensor there to what goes on."""
    unwrap = getattr(model, "get_base_model", None)  # not by models.wrappers: no code is shared with the fast paths
    inner: Any = unwrap() if callable(unwrap) else model
    family = inner.config.model_type
    if family not in BLOCKS:
        raise UnsupportedModelError(
            f"the reference has no block equation for family {family!r}.{did_you_mean(family, list(BLOCKS))} "
            f"It has: {', '.join(BLOCKS)}."
        )
    if model.training:
        raise InputError("the block equations have no dropout; call model.eval() first.")
    path, equation = BLOCKS[family]
    blocks = inner.get_submodule(path)
    if site.layer >= len(blocks):
        raise InputError(f"site '{site}' names layer {site.layer}; this model has layers 0 to {len(blocks) - 1}.")
    block = blocks[site.layer]
    heads = inner.config.num_attention_heads
    if site.head is not None and site.head >= heads:
        raise InputError(f"site '{site}' names head {site.head}; this model has heads 0 to {heads - 1}.")
    visited: list[SiteKind] = []

    def at(kind: SiteKind, x: Tensor) -> Tensor:
        visited.append(kind)
        if kind is not site.kind:
            return x
        if site.head is None:
            return at_site(x)
        width = x.shape[-1] // heads
        start, stop = site.head * width, (site.head + 1) * width
        return torch.cat([x[..., :start], at_site(x[..., start:stop]), x[..., stop:]], dim=-1)

    names = list(signature(type(block).forward).parameters)[2:]  # after self and hidden_states

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        passed_on = {**dict(zip(names, args, strict=False)), **kwargs}

        def attend(attention: nn.Module, projection: nn.Module, x: Tensor) -> Tensor:
            project = projection.forward
            with _forward_replaced(projection, lambda z: project(at(HEADS, z))):
                return attention(x, **passed_on)[0]

        return equation(block, hidden_states, attend, at)

    with _forward_replaced(block, forward):
        logits = model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).logits
    if site.kind not in visited:
        raise InputError(f"a block of family {family!r} has no site '{site.kind}'. It has: {', '.join(visited)}.")
    return logits


def edited_logits(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    site: Site,
    edit: Edit,
) -> Tensor:
    """Return the logits of a run in which ``x`` at one site becomes ``x + edit(x)``.

    Args:
        model: A causal language model in evaluation mode (a PEFT wrapper works too).
        input_ids: ``(batch, token)``.
        attention_mask: ``(batch, token)`` of zeros and ones, or ``None`` for no padding.
        position_ids: ``(batch, token)``, or ``None`` for the model's own.
        site: Where. With a head, ``edit`` sees and changes that head's channels alone.
        edit: From ``(batch, token, channel)`` to what is added there; called at every token, padding included.

    Returns:
        Logits ``(batch, token, vocabulary)``.

    Raises:
        InputError: The model is in training mode, or has no such layer, head or site.
        UnsupportedModelError: No block equation is written down for this family.

    Cost: one forward pass. Source: the equations of docs/sites.md.
    """
    return _run(model, input_ids, attention_mask, position_ids, site, lambda x: x + edit(x))


def site_value(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    site: Site,
) -> Tensor:
    """Return the tensor at a site, as the reference computes it.

    Args:
        model: A causal language model in evaluation mode.
        input_ids: ``(batch, token)``.
        attention_mask: ``(batch, token)`` of zeros and ones, or ``None`` for no padding.
        position_ids: ``(batch, token)``, or ``None`` for the model's own.
        site: Where.

    Returns:
        ``(batch, token, channel)``, unedited.
    """
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _run(model, input_ids, attention_mask, position_ids, site, keep)
    return found[0]


# --- dense derivatives ---


def _jacobian_rows(rows: Tensor, parameter: Tensor, what: str) -> Tensor:
    """Stack the gradient of every entry of ``rows`` (rows,) with respect to ``parameter``."""
    if rows.dim() != 1:
        raise InputError(f"outputs must return one axis of numbers, got shape {tuple(rows.shape)}.")
    gradients = []
    for row in rows:
        (gradient,) = torch.autograd.grad(row, parameter, retain_graph=True, allow_unused=True)
        if gradient is None:  # a silent zero would look like a theorem
            raise InputError(f"the outputs do not depend on {what} at all; check its name and the outputs.")
        gradients.append(gradient)
    return torch.stack(gradients)


def dense_edit_jacobian(
    outputs: Outputs,
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    site: Site,
    family: Literal["vector", "linear"],
    method: Method = "autograd",
    step: float = 1e-5,
) -> Tensor:
    r"""Return the derivative of outputs with respect to an edit's parameters, at the zero edit.

    .. math:: \delta_{b,t} = v \;\text{(vector)}, \qquad \delta_{b,t} = A\, h_{b,t} \;\text{(linear)}

    with one ``v`` or ``A`` for all tokens whose ``attention_mask`` is 1, and no edit elsewhere.

    Args:
        outputs: From logits to ``(rows,)`` numbers.
        model: As in :func:`edited_logits`.
        input_ids: As in :func:`edited_logits`.
        attention_mask: As in :func:`edited_logits`; also says which tokens are edited.
        position_ids: As in :func:`edited_logits`.
        site: Where; ``h`` is what this site reads.
        family: ``"vector"`` or ``"linear"``.
        method: ``"autograd"`` (exact to rounding) or ``"difference"`` (central differences, error about
            ``step**2``, shares nothing with autograd; two forward passes per parameter).
        step: Step of the central differences.

    Returns:
        ``(rows, d)`` for a vector; ``(rows, d, d)`` indexed ``[row, written channel, read channel]`` for a
        linear edit.

    Raises:
        InputError: Unknown ``family`` or ``method``, outputs of another shape, or no such site.

    Cost: one backward pass per row, or two forward passes per parameter. Source: P29 (the forms), P38 (their tangents).
    """
    value = site_value(model, input_ids, attention_mask, position_ids, site)
    width = value.shape[-1]
    kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    kept = kept.to(value.dtype).unsqueeze(-1)
    if family == "vector":
        zero = torch.zeros(width, dtype=value.dtype, device=value.device)
    elif family == "linear":
        zero = torch.zeros(width, width, dtype=value.dtype, device=value.device)
    else:
        raise InputError(f"unknown edit form {family!r} for the reference. Valid: vector, linear.")

    def rows(parameter: Tensor) -> Tensor:
        def edit(h: Tensor) -> Tensor:
            return kept * (parameter.expand_as(h) if family == "vector" else h @ parameter.T)

        return outputs(edited_logits(model, input_ids, attention_mask, position_ids, site, edit))

    if method == "autograd":
        with torch.enable_grad():
            parameter = zero.clone().requires_grad_()
            return _jacobian_rows(rows(parameter), parameter, f"an edit of '{site}'")
    if method != "difference":
        raise InputError(f"unknown method {method!r}. Valid: autograd, difference.")
    columns = []
    with torch.no_grad():
        for index in range(zero.numel()):
            nudge = zero.clone()
            nudge.view(-1)[index] = step
            columns.append((rows(nudge) - rows(-nudge)) / (2 * step))
    return torch.stack(columns, dim=-1).reshape(-1, *zero.shape)


def dense_weight_jacobian(
    outputs: Outputs,
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    weight_name: str,
) -> Tensor:
    """Return the derivative of outputs with respect to one named weight, ``(rows, *weight.shape)``.

    A tied weight counts with all its uses. The weight's ``requires_grad`` is put back afterwards.

    Args:
        outputs: From the logits to the outputs.
        model: A causal language model in evaluation mode.
        input_ids: ``(batch, token)``.
        attention_mask: ``(batch, token)`` of zeros and ones, or ``None`` for no padding.
        position_ids: ``(batch, token)``, or ``None`` for the model's own.
        weight_name: A name of ``model.named_parameters()``.

    Returns:
        ``(rows, *weight.shape)``.

    Raises:
        InputError: No weight of that name, or the outputs do not depend on it.

    Cost: one backward pass per row.
    """
    weight = _named_weights(model, [weight_name])[weight_name]
    before = weight.requires_grad
    weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            ).logits
            return _jacobian_rows(outputs(logits), weight, f"weight {weight_name!r}")
    finally:
        weight.requires_grad_(before)


def central_difference_shift(
    model: nn.Module, run: Callable[[], Result], weight_update: Mapping[str, Tensor], step: float
) -> Result:
    r"""Return the shift of whatever ``run()`` returns under a weight update, by central differences.

    .. math:: \delta y \approx \frac{y(W + \epsilon\,\Delta W) - y(W - \epsilon\,\Delta W)}{2\epsilon}

    Args:
        model: Whose weights ``run`` uses.
        run: Returns a tensor, a mapping of tensors or a tuple of tensors.
        weight_update: Change per parameter name, in the parameter's own shape.
        step: The factor epsilon. The result is not scaled by it; its error is about ``step**2``.

    Returns:
        The shift, in the form ``run`` returns.

    Raises:
        InputError: An unknown name, a wrong shape, or two names of one tied tensor.

    Cost: two runs. The weights are put back bit for bit, also when ``run`` raises.
    """
    weights = _named_weights(model, list(weight_update))
    if len({id(weight) for weight in weights.values()}) < len(weights):
        raise InputError(f"weight_update names one tied tensor twice: {sorted(weights)}. Keep one of the names.")
    for name, weight in weights.items():
        if weight.shape != weight_update[name].shape:
            raise InputError(
                f"weight_update[{name!r}] has shape {tuple(weight_update[name].shape)}; "
                f"the weight has {tuple(weight.shape)}."
            )
    originals = {name: weight.detach().clone() for name, weight in weights.items()}

    def run_at(factor: float) -> Any:
        for name, weight in weights.items():
            weight.copy_(originals[name] + factor * weight_update[name])
        return _map(lambda tensor: tensor.detach().clone(), run())

    with torch.no_grad():
        try:
            above, below = run_at(step), run_at(-step)
        finally:
            for name, weight in weights.items():
                weight.copy_(originals[name])
    return _map(lambda up, down: (up - down) / (2 * step), above, below)


def kernel(jacobian: Tensor) -> Tensor:
    """Return the Gram matrix ``(rows, rows)`` of a Jacobian ``(rows, ...)`` over all its parameters."""
    flat = jacobian.flatten(start_dim=1)
    return flat @ flat.T


def _named_weights(model: nn.Module, names: list[str]) -> dict[str, nn.Parameter]:
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in weights:
            raise InputError(
                f"the model has no weight {name!r}.{did_you_mean(name, list(weights))} See model.named_parameters()."
            )
    return {name: weights[name] for name in names}


def _map(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, Mapping):
        return {key: function(first[key], *(other[key] for other in others)) for key in first}
    return tuple(function(*entries) for entries in zip(first, *others, strict=True))
