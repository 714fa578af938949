r"""Non-identifiability: different steering vectors with the same outputs.

With :math:`J` the derivative of the outputs with respect to a steering vector and :math:`n \in \ker J`,

.. math:: z(t(v + n)) - z(t v) = O(t^2):

outputs cannot tell v from v + n at first order (Non-Identifiability of Steering Vectors, arXiv 2602.06801). The
null space is local, so the gap is quadratic and not zero. One direction is null at any size: before the final norm
:math:`h \to (1 + c) h` changes nothing, since :math:`N(c h) = N(h)`; in LayerNorm neither does a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import curve, relative_error
from steerscope.equivalence.propositions.runs import post, run_at, shortened, slope_of
from steerscope.equivalence.propositions.subject import Subject
from steerscope.errors import UnsupportedModelError
from steerscope.models.site_map import decoder_of

GROUP = "identifiability"

# Sizes of the vector relative to the stream: below 1e-5 rounding shows in the square.
SCALES = (1e-2, 1e-3, 1e-4)
SECOND_ORDER = (1.95, 2.05)
# The final norm divides the factor out again: rounding of one product.
EXACT = 1e-12
OUTPUTS = 6
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


# --- formulas ---


def null_part(vector: Tensor, jacobian: Tensor) -> Tensor:
    """Return the part of ``vector`` (d) in the kernel of ``jacobian`` (q d)."""
    rows = torch.linalg.qr(jacobian.T).Q
    return vector - rows @ (rows.T @ vector)


def radial_shift(h: Tensor, factor: float, constant: float) -> Tensor:
    """Return ``c h + b 1``: what a norm does not see (b is 0 for RMSNorm)."""
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


def _check(subject: Subject) -> Evidence:
    few, site = shortened(subject, 4), post(subject.layer)
    base = run_at(few, (site,))
    probe = few.draw(OUTPUTS, base.logits.shape[-1], salt=60)
    size = float(base[site].norm(dim=-1).mean())

    def outputs(vector: Tensor) -> Tensor:
        return probe @ run_at(few, edits={site: lambda h: vector.expand_as(h)}).logits[0, -1]

    width = base[site].shape[-1]
    pull = torch.func.vjp(outputs, torch.zeros(width, dtype=torch.float64))[1]
    jacobian = torch.stack([pull(row)[0].detach() for row in torch.eye(OUTPUTS, dtype=torch.float64)])
    vector, other = (size * few.draw(width, salt=salt) / width**0.5 for salt in (61, 62))
    null = null_part(other, jacobian)

    def gaps(extra: Tensor) -> list[float]:
        return [float((outputs(t * (vector + extra)) - outputs(t * vector)).norm()) for t in SCALES]

    unseen, seen = gaps(null), gaps(other)
    norm, top = final_norm(few.model), post(len(few.site_map.blocks) - 1)
    constant = 0.7 if isinstance(norm, nn.LayerNorm) else 0.0
    with _without_epsilon(norm):
        plain = run_at(few).logits
        radial = run_at(few, edits={top: lambda h: radial_shift(h, 0.3, constant)}).logits
        turned = run_at(few, edits={top: lambda h: 0.3 * h.roll(1, -1)}).logits
    return Evidence(
        claim=(
            Measurement(
                "slope of the gap between v and v + n, n in the kernel", slope_of(SCALES, unseen), *SECOND_ORDER
            ),
            Measurement("logits, radial shift before the final norm", relative_error(radial, plain), high=EXACT),
            Measurement("size of n over the stream", float(null.norm()) / size, low=0.1),
        ),
        controls=(
            Measurement("slope of the gap for a vector outside the kernel", slope_of(SCALES, seen), *SECOND_ORDER),
            Measurement(
                "logits, a shift of the same size that is not radial", relative_error(turned, plain), high=EXACT
            ),
        ),
        notes=(
            f"{OUTPUTS} outputs of the last token, {width} channels; the final norm's epsilon "
            "set to 0 for the radial shift",
        ),
        series={
            "in the kernel": curve("size over the stream", SCALES, "gap of the outputs", unseen),
            "outside": curve("size over the stream", SCALES, "gap of the outputs", seen),
        },
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        40,
        GROUP,
        "steering vectors are not identifiable",
        "v and v + n with n in the kernel of the outputs' derivative agree at first order, with a gap of order t^2; "
        "before the final norm (1 + c) h is as good as h at any size (Non-Identifiability of Steering Vectors, "
        "2602.06801).",
        "Fewer outputs than channels; epsilon 0 for the radial part.",
        Source.LITERATURE,
        _check,
    ),
)
