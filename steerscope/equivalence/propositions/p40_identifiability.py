r"""P40, non-identifiability: different steering vectors with the same outputs.

With :math:`J` the derivative of the outputs with respect to a steering vector and :math:`n \in \ker J`,

.. math:: z(t(v + n)) - z(t v) = O(t^2):

outputs cannot tell v from v + n at first order (Non-Identifiability of Steering Vectors, arXiv 2602.06801). The
null space is local, so the gap is quadratic and not zero. One direction is null at any size: before the final norm
:math:`h \to (1 + c) h` changes nothing, since :math:`N(c h) = N(h)`; in LayerNorm neither does a constant.

Sizes at which the gap is measured. The statement is about small t, and how small differs between models by orders of
magnitude, so the sizes start at the subject's own *first-order radius*: the largest t of a grid at which
:math:`|z(t u) - z(0) - t J u| \le 0.1\, |t J u|` for three vectors (v, v + n and v plus a vector outside the kernel),
and for every smaller t of the grid. Beyond it a first-order statement is not about this model. The gap of v + n, and so
the slope on trial, does not enter the choice. *The sizes were changed after a first look*: at first they were 0.01,
0.001 and 0.0001 of the stream for every subject; on SmolLM2-135M the two larger ones lie outside the radius (there the
outputs along v are nowhere near linear) and the slope over the three was 1.86. The control is another vector: one in
the kernel of another map of the same shape, whose gap is of first order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.parts import relative_error
from steerscope.equivalence.propositions.runs import FIRST_ORDER, SECOND_ORDER, post, run_at, shortened
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import slope_of
from steerscope.errors import UnsupportedModelError
from steerscope.models.wrappers import decoder_of

GROUP = "identifiability"

# Sizes of the vector relative to the stream among which the first-order radius is sought: two per power of ten.
GRID = tuple(10 ** (-1 - k / 2) for k in range(9))
# An output counts as first-order with at most this relative error (as in the remainder slopes of real models).
FIRST_ORDER_ERROR = 0.1
# Sizes of the gaps, as parts of the radius. Two powers of ten below it a gap has lost a factor of 10^4, and rounding
# is still far below it: the smallest radius of the grid is 1e-5.
PARTS = (1.0, 1e-1, 1e-2)
# The final norm divides the factor out again: rounding of one product.
EXACT = 1e-12
OUTPUTS = 6
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


# --- formulas ---


def null_part(vector: Tensor, jacobian: Tensor) -> Tensor:
    """Return the part of ``vector`` (d) in the kernel of ``jacobian`` (q d).

    Args:
        vector: ``(d,)``.
        jacobian: ``(q, d)``, of full row rank.

    Returns:
        ``(d,)``.
    """
    rows = torch.linalg.qr(jacobian.T).Q
    return vector - rows @ (rows.T @ vector)


def radial_shift(h: Tensor, factor: float, constant: float) -> Tensor:
    """Return ``c h + b 1``: what a norm does not see (b is 0 for RMSNorm).

    Args:
        h: The residual stream, ``(..., d)``.
        factor: c.
        constant: b, the same for all channels.

    Returns:
        ``(..., d)``.
    """
    return factor * h + constant


# --- check ---


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm before the unembedding.

    Raises:
        UnsupportedModelError: It has none of the known names.
    """
    decoder = decoder_of(model)
    for place in (decoder, getattr(decoder, "decoder", None)):
        for name in _FINAL_NORMS:
            found = getattr(place, name, None)
            if isinstance(found, nn.Module):
                return found
    raise UnsupportedModelError(f"{type(decoder).__name__} has no final norm under the names {_FINAL_NORMS}.")


@contextmanager
def _without_epsilon(norm: nn.Module) -> Iterator[None]:
    name = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
    before = getattr(norm, name)
    setattr(norm, name, 0.0)
    try:
        yield
    finally:
        setattr(norm, name, before)


def first_order_radius(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Return the largest size up to which every error is at most :data:`FIRST_ORDER_ERROR`, 0 if there is none.

    Args:
        sizes: Sizes of a vector.
        errors: Relative error of the first-order prediction at each size.

    Returns:
        In the units of ``sizes``.
    """
    found = 0.0
    for size, error in sorted(zip(sizes, errors, strict=True)):
        if not error <= FIRST_ORDER_ERROR:
            break
        found = size
    return found


def _check(subject: Subject) -> Evidence:
    few, site = shortened(subject, 4), post(subject.layer)
    base = run_at(few, (site,))
    probe = few.draw(OUTPUTS, base.logits.shape[-1], salt=60)
    size = float(base[site].norm(dim=-1).mean())

    def outputs(vectors: Tensor) -> Tensor:
        """Return ``vector output``: all vectors (``vector d``) are one batch, each added at every position."""
        many = replace(few, input_ids=few.input_ids.expand(len(vectors), -1))
        logits = run_at(many, edits={site: lambda h: vectors[:, None].expand_as(h)}).logits
        return logits[:, -1] @ probe.T

    width = base[site].shape[-1]
    plain, pull, *_ = torch.func.vjp(outputs, torch.zeros(1, width, dtype=torch.float64))
    jacobian = torch.stack([pull(row[None])[0][0].detach() for row in torch.eye(OUTPUTS, dtype=torch.float64)])
    vector, other = (size * few.draw(width, salt=salt) / width**0.5 for salt in (61, 62))
    null = null_part(other, jacobian)
    # In the kernel of other outputs of the same shape: null for them, not for these.
    elsewhere = null_part(other, few.draw(*jacobian.shape, salt=63))
    tried = torch.stack([vector, vector + null, vector + other, vector + elsewhere])
    linear = tried @ jacobian.T

    errors = []
    for t in GRID:
        left = (outputs(t * tried[:3]) - plain.detach() - t * linear[:3]).norm(dim=-1)
        errors.append(float((left / (t * linear[:3].norm(dim=-1))).max()))
    radius = first_order_radius(GRID, errors)
    scales = tuple(part * (radius or GRID[-1]) for part in PARTS)
    moved = [outputs(t * tried) for t in scales]
    unseen, seen, mistaken = ([float((one[row] - one[0]).norm()) for one in moved] for row in (1, 2, 3))
    norm, top = final_norm(few.model), post(len(few.site_map.blocks) - 1)
    constant = 0.7 if isinstance(norm, nn.LayerNorm) else 0.0
    with _without_epsilon(norm):
        exact = run_at(few).logits
        radial = run_at(few, edits={top: lambda h: radial_shift(h, 0.3, constant)}).logits
        turned = run_at(few, edits={top: lambda h: 0.3 * h.roll(1, -1)}).logits
    return Evidence(
        claim=(
            Measurement(
                "slope of the gap between v and v + n, n in the kernel", slope_of(scales, unseen), *SECOND_ORDER
            ),
            Measurement("slope of the gap for a vector outside the kernel", slope_of(scales, seen), *FIRST_ORDER),
            Measurement("logits, radial shift before the final norm", relative_error(radial, exact), high=EXACT),
            # Without a radius nothing of this could be asked: a wrong derivative must not pass as a small radius.
            Measurement("first-order radius of the outputs, over the stream", radius, low=GRID[-1]),
            Measurement("size of n over the stream", float(null.norm()) / size, low=0.1),
        ),
        controls=(
            Measurement(
                "slope of the gap for a vector in the kernel of another map", slope_of(scales, mistaken), *SECOND_ORDER
            ),
            Measurement(
                "logits, a shift of the same size that is not radial", relative_error(turned, exact), high=EXACT
            ),
        ),
        limit=f"{OUTPUTS} outputs, sizes up to {radius:.2g} of the stream",
        notes=(
            f"{OUTPUTS} outputs of the last token, {width} channels; the final norm's epsilon "
            "set to 0 for the radial shift",
            f"sizes {', '.join(f'{t:.2g}' for t in scales)} of the stream, the largest being the first-order radius "
            f"of the outputs (relative error at most {FIRST_ORDER_ERROR:g}); fixed sizes from 0.01 to 0.0001 were "
            "given up after a first look, because two of them lay outside the radius of a real model",
        ),
        series={
            "in the kernel": curve("size over the stream", scales, "gap of the outputs", unseen),
            "outside": curve("size over the stream", scales, "gap of the outputs", seen),
            "in another map's kernel": curve("size over the stream", scales, "gap of the outputs", mistaken),
            "error of the first-order prediction": curve("size over the stream", GRID, "relative error", errors),
        },
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        40,
        GROUP,
        "steering vectors are not identifiable from few outputs",
        "v and v + n with n in the kernel of the derivative of the outputs looked at agree at first order, with a gap "
        "of order t^2; before the final norm (1 + c) h is as good as h at any size "
        "(Non-Identifiability of Steering Vectors, 2602.06801).",
        "Fewer outputs than channels; t within the first-order radius of the outputs; epsilon 0 for the radial part.",
        Source.LITERATURE,
        _check,
    ),
)
