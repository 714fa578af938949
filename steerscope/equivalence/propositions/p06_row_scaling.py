"""P6: the factors of a gated MLP's derivative scale rows, not columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steerscope.equivalence.closed_forms import (
    Activation,
    GatedWeights,
    activation_slope,
    gated_mlp,
    plain_mlp,
)
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.mlp_expansion import (
    GROUP,
    SCALES,
    SMOOTH,
    central_difference,
    drawn_input_shift,
    kink_notes,
)
from steerscope.equivalence.propositions.parts import (
    MLPWeights,
    down_of,
    is_piecewise_linear,
    mlp_alone,
    mlp_parts,
    relative_error,
    tensors_at,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.sites import SiteKind

# Fourth-order central differences with steps of 1e-3 in the pre-activations: truncation 1e-12, rounding about 1e-12.
DIFFERENCE = 1e-8
DIFFERENCE_STEP = 1e-3

# --- formulas under test that no other file has ---


def scaled_rows(scale: Tensor, weight: Tensor) -> Tensor:
    """Return ``diag(scale) W``: hidden channel i scales row i of ``W`` (``(n,)`` and ``(n, d)``). Source: P6.

    Args:
        scale: One factor per hidden channel, ``(n,)``.
        weight: ``(n, d)``.

    Returns:
        ``(n, d)``.
    """
    return scale[:, None] * weight


def scaled_as_published(scale: Tensor, weight: Tensor) -> Tensor:
    """Return ``1 scale^T (.) W`` as the post prints it: it scales columns, so it exists for square ``W`` only.

    Args:
        scale: One factor per hidden channel, ``(n,)``.
        weight: ``(n, n)``.

    Returns:
        ``(n, n)``, another matrix than :func:`scaled_rows` returns.
    """
    return torch.ones_like(scale)[:, None] * scale[None, :] * weight


# --- check ---


def check_row_scaling(subject: Subject) -> Evidence:
    """P6: diagonals scale rows; the printed broadcast scales columns."""
    parts = mlp_parts(subject)
    (z,) = tensors_at(subject, (SiteKind.MLP_IN,))
    token = z[0, -1]
    direction = drawn_input_shift(subject, parts, z)[0, -1]
    step = DIFFERENCE_STEP if not is_piecewise_linear(parts.activation) else max(SCALES) / 2
    # The published form needs a square W: the first n hidden channels on the first n inputs make one.
    n = min(parts.down.shape)
    square = type(parts.weights)(*(w[:n, :n] if w.dim() == 2 else w[:n] for w in parts.weights))

    def along(
        scaling: Callable[[Tensor, Tensor], Tensor], weights: MLPWeights, x: Tensor, d: Tensor, swap: bool = False
    ) -> Tensor:
        return down_of(weights) @ (_factor(scaling, x, weights, parts.activation, swap) @ d)

    def on_square(x: Tensor) -> Tensor:
        if isinstance(square, GatedWeights):
            return gated_mlp(x, square, parts.activation)
        return plain_mlp(x, square, parts.activation)

    measured = central_difference(lambda x: mlp_alone(subject, x), token, direction, step)
    measured_square = central_difference(on_square, token[:n], direction[:n], step)

    def error(found: Tensor, expected: Tensor, name: str) -> Measurement:
        return Measurement(name, relative_error(found, expected), high=DIFFERENCE)

    wrong = error(
        along(scaled_as_published, square, token[:n], direction[:n]),
        measured_square,
        f"columns scaled, first {n} channels",
    )
    claim = (
        error(along(scaled_rows, parts.weights, token, direction), measured, "rows scaled, against differences"),
        error(
            along(scaled_rows, square, token[:n], direction[:n]), measured_square, f"rows scaled, first {n} channels"
        ),
    )
    if not parts.is_gated:  # the printed statement is about gated MLPs
        return Evidence(claim=claim, controls=(wrong,), notes=kink_notes(parts, z))
    swapped = along(scaled_rows, parts.weights, token, direction, swap=True)
    return Evidence(
        claim=claim,
        controls=(error(swapped, measured, "scales of gate and up exchanged"),),
        published=(wrong,),
        notes=(
            *kink_notes(parts, z),
            f"the published form has no shape that fits W of {tuple(parts.down.shape[::-1])}",
        ),
    )


def _factor(
    scaling: Callable[[Tensor, Tensor], Tensor], z: Tensor, weights: MLPWeights, activation: Activation, swap: bool
) -> Tensor:
    """Return ``J`` of P6 at one token with the given way to scale, ``(d_ff, d)``; ``swap`` exchanges the scales."""
    if not isinstance(weights, GatedWeights):
        return scaling(activation_slope(activation, z @ weights.first.T + weights.first_bias), weights.first)
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    of_gate, of_up = activation_slope(activation, a_g) * a_u, activation(a_g)
    if swap:
        of_gate, of_up = of_up, of_gate
    return scaling(of_gate, weights.gate) + scaling(of_up, weights.up)


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        6,
        GROUP,
        "the factors scale rows",
        "J = diag(phi'(a_g) * a_u) W_g + diag(phi(a_g)) W_u: every hidden channel scales its row.",
        SMOOTH,
        Source.POST,
        check_row_scaling,
        published="The post writes the scaling as 1 a^T (.) W: it scales columns, and fits only where d_ff = d.",
    ),
)
