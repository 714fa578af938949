"""P3 to P5: what follows the first order of one MLP, under edits of its input and under weight updates.

The expansion is that of P1 and P2, in :mod:`~steerscope.equivalence.propositions.p01_02_first_order`: with its term of
second order subtracted as well, the remainder falls with slope 3. Where phi is the identity no term follows it (P4).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from steerscope.equivalence.closed_forms import (
    Activation,
    GatedWeights,
    gated_input_shift,
)
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.mlp_expansion import (
    GROUP,
    NO_SECOND_ORDER,
    SCALES,
    SMOOTH,
    drawn_input_shift,
    drawn_weight_update,
    input_second_order,
    input_shift,
    kink_notes,
    remainder_curve,
    slope_within,
    weight_second_order,
    weight_shift,
    without_down,
)
from steerscope.equivalence.propositions.parts import (
    as_parameters,
    is_piecewise_linear,
    mlp_alone,
    mlp_parts,
    moved,
    relative_error,
    tensors_at,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import Remainder, fit_remainder
from steerscope.sites import SiteKind

# A bilinear remainder is a difference of outputs, so rounding of the outputs (1e-16 of each term) is magnified.
BILINEAR = 1e-13

# --- formula under test that no other file has ---


def bilinear_remainder(shift: Tensor, weights: GatedWeights) -> Tensor:
    """Return ``W_d ((W_g shift) * (W_u shift))``: all that follows the first order where ``phi`` is the identity.

    ``shift`` is ``(..., d)``, and so is the result. Source: P4.

    Args:
        shift: Change of the MLP's input, ``(..., d)``.
        weights: The MLP's weights.

    Returns:
        ``(..., d)``.
    """
    return ((shift @ weights.gate.T) * (shift @ weights.up.T)) @ weights.down.T


# --- checks ---


def check_input_second_order(subject: Subject) -> Evidence:
    """P3: slope 3 once the second-order term of P2 is subtracted as well."""
    parts = mlp_parts(subject)
    if not parts.is_gated and is_piecewise_linear(parts.activation):
        return Evidence(inapplicable=NO_SECOND_ORDER.format("in its input"))
    (z,) = tensors_at(subject, (SiteKind.MLP_IN,))
    shift = drawn_input_shift(subject, parts, z)
    linear, second, before = input_shift(z, shift, parts), input_second_order(z, shift, parts), mlp_alone(subject, z)

    def remainder_with(factor: float) -> Remainder:
        return fit_remainder(
            lambda t: mlp_alone(subject, z + t * shift) - before - factor * t**2 * second, linear, SCALES
        )

    right = remainder_with(1.0)
    return Evidence(
        claim=(slope_within("slope after the second order", right, 3),),
        controls=(
            slope_within("slope without the second order", remainder_with(0.0), 3),
            slope_within("slope with twice the second order", remainder_with(2.0), 3),
        ),
        notes=kink_notes(parts, z),
        series={"remainder": remainder_curve(right, "shift")},
    )


def check_bilinear(subject: Subject) -> Evidence:
    """P4: with the identity for phi the remainder of a finite shift is known exactly."""
    parts = mlp_parts(subject)
    if not isinstance(parts.weights, GatedWeights):
        return Evidence(inapplicable="without a gate the MLP is linear once phi is the identity: nothing is left over")
    (z,) = tensors_at(subject, (SiteKind.MLP_IN,))
    shift = subject.draw(*z.shape, salt=140) * z.square().mean().sqrt()
    bilinear = replace(subject.block, activation=_identity)

    def left_over(block_of: object, phi: Activation) -> Tensor:
        block = bilinear if block_of is bilinear else subject.block
        change = mlp_alone(subject, z + shift, block=block) - mlp_alone(subject, z, block=block)
        return change - gated_input_shift(z, shift, parts.weights, phi)  # type: ignore[arg-type]

    expected = bilinear_remainder(shift, parts.weights)
    return Evidence(
        claim=(
            Measurement(
                "finite remainder against the formula, phi = id",
                relative_error(left_over(bilinear, _identity), expected),
                high=BILINEAR,
            ),
        ),
        controls=(
            Measurement(
                "the same with the model's own phi",
                relative_error(left_over(subject.block, parts.activation), expected),
                high=BILINEAR,
            ),
        ),
    )


def _identity(x: Tensor) -> Tensor:
    return x


def check_weight_second_order(subject: Subject) -> Evidence:
    """P5: slope 3 for weight updates, with the cross term between the down projection and the rest."""
    parts = mlp_parts(subject)
    if not parts.is_gated and is_piecewise_linear(parts.activation):
        return Evidence(inapplicable=NO_SECOND_ORDER.format("in its weights"))
    (z,) = tensors_at(subject, (SiteKind.MLP_IN,))
    update = drawn_weight_update(subject, parts, z)
    linear, before = weight_shift(z, parts, update), mlp_alone(subject, z)
    full = weight_second_order(z, parts, update)
    # The cross term is what the second order loses when the down projection stays.
    without_cross = weight_second_order(z, parts, without_down(update))

    def remainder_with(second: Tensor) -> Remainder:
        def measured(t: float) -> Tensor:
            after = mlp_alone(subject, z, as_parameters(subject, moved(parts.weights, update, t)))
            return after - before - t**2 * second

        return fit_remainder(measured, linear, SCALES)

    right = remainder_with(full)
    return Evidence(
        claim=(slope_within("slope after the second order", right, 3),),
        controls=(slope_within("slope without the cross term", remainder_with(without_cross), 3),),
        notes=kink_notes(parts, z),
        series={"remainder": remainder_curve(right, "update")},
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        3,
        GROUP,
        "second order of an edit of the MLP's input",
        "The next term is W_d[phi' * (W_g D) * (W_u D) + phi'' * a_u * (W_g D)^2 / 2].",
        SMOOTH,
        Source.OURS,
        check_input_second_order,
    ),
    Proposition(
        4,
        GROUP,
        "a bilinear MLP ends at second order",
        "With phi = id the remainder of any finite D is exactly W_d[(W_g D) * (W_u D)].",
        "a gate; phi replaced by the identity",
        Source.OURS,
        check_bilinear,
    ),
    Proposition(
        5,
        GROUP,
        "second order of a weight update",
        "The next term is P3's with D replaced by the changes, and DW_d[phi' * a_u * (DW_g z) + phi * (DW_u z)].",
        SMOOTH,
        Source.OURS,
        check_weight_second_order,
    ),
)
