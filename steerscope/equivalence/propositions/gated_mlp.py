r"""P1 to P6: first- and second-order shifts of one MLP, under weight updates and under edits of its input.

With ``a_g = W_g z``, ``a_u = W_u z`` and ``m = phi(a_g) * a_u`` a gated MLP is ``y = W_d m``. Moving the weights
by ``t`` times an update, or the input by ``t`` times a shift, and expanding in ``t``

.. math:: y(t) = y + t\, y_1 + t^2 y_2 + O(t^3)

gives the first-order terms T1 and T2 as ``y_1`` and the second-order terms of P3 and P5 as ``y_2``. So the
remainder after ``y_1`` falls with slope 2 in ``t`` and after ``y_2`` with slope 3; a wrong or missing term shows
as slope 1 or 2. Measured values come from the model's own modules, formulas from
:mod:`steerscope.equivalence.closed_forms`; a plain MLP is tried against the same statements without a gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import jacfwd, jvp

from steerscope.equivalence.closed_forms import (
    Activation,
    GatedWeights,
    activation_slope,
    gated_input_shift,
    gated_mlp,
    plain_mlp,
)
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Series, Source
from steerscope.equivalence.propositions.mlp_expansion import (
    SCALES,
    central_difference,
    drawn_input_shift,
    drawn_weight_update,
    input_jacobian,
    input_second_order,
    input_shift,
    weight_second_order,
    weight_shift,
    without_down,
)
from steerscope.equivalence.propositions.parts import (
    MLPParts,
    MLPWeights,
    as_parameters,
    curve,
    is_piecewise_linear,
    mlp_alone,
    mlp_parts,
    moved,
    relative_error,
    run,
    tensors_at,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import Remainder, fit_remainder
from steerscope.equivalence.shifts import first_order_shift
from steerscope.sites import Site, SiteKind

# The notes ask for 2 +- 0.05; a wrong order is off by 1.
SLOPE_TOLERANCE = 0.05
# Two exact derivatives in float64 differ by rounding of sums over d_ff; the notes ask for 1e-10.
EXACT = 1e-10
# A bilinear remainder is a difference of outputs, so rounding of the outputs (1e-16 of each term) is magnified.
BILINEAR = 1e-12
# Fourth-order central differences with steps of 1e-3 in the pre-activations: truncation 1e-12, rounding about 1e-12.
DIFFERENCE = 1e-8
DIFFERENCE_STEP = 1e-3


# --- formulas under test that no other file has ---


def bilinear_remainder(shift: Tensor, weights: GatedWeights) -> Tensor:
    """Return ``W_d ((W_g shift) * (W_u shift))``: all that follows the first order where ``phi`` is the identity.

    ``shift`` is ``(..., d)``, and so is the result. Source: P4.
    """
    return ((shift @ weights.gate.T) * (shift @ weights.up.T)) @ weights.down.T


def scaled_rows(scale: Tensor, weight: Tensor) -> Tensor:
    """Return ``diag(scale) W``: hidden channel i scales row i of ``W`` (``(n,)`` and ``(n, d)``). Source: P6."""
    return scale[:, None] * weight


def scaled_as_published(scale: Tensor, weight: Tensor) -> Tensor:
    """Return ``1 scale^T (.) W`` as the post prints it: it scales columns, so it exists for square ``W`` only."""
    return torch.ones_like(scale)[:, None] * scale[None, :] * weight


def _slope(name: str, remainder: Remainder, order: int) -> Measurement:
    return Measurement(name, remainder.slope, order - SLOPE_TOLERANCE, order + SLOPE_TOLERANCE)


def _curve(remainder: Remainder, of: str) -> Series:
    y_name = "remainder / predicted shift"
    return curve(
        f"scale of the {of} (1: largest change of a pre-activation is 1)", remainder.scales, y_name, remainder.relative
    )


def _kinks(parts: MLPParts, z: Tensor) -> tuple[str, ...]:
    if not is_piecewise_linear(parts.activation):
        return ()
    nearest = float(parts.activated(z).abs().min())
    return (f"phi has kinks; the change was kept short of the nearest one ({nearest:.1e} away), none was crossed",)


_NO_SECOND_ORDER = (
    "phi is piecewise linear: within one activation pattern a plain MLP's expansion {} ends with the terms that are "
    "subtracted, and no remainder is left whose slope could be measured"
)


# --- checks ---


def check_weight_shift(subject: Subject) -> Evidence:
    """P1: slope of the remainder of T1, and T1 against the whole model's forward derivative."""
    parts, block = mlp_parts(subject), subject.block
    (z,) = tensors_at(subject, (SiteKind.MLP_IN,))
    update = drawn_weight_update(subject, parts, z)
    linear, before = weight_shift(z, parts, update), mlp_alone(subject, z)

    def measured(t: float) -> Tensor:
        return mlp_alone(subject, z, as_parameters(subject, moved(parts.weights, update, t))) - before

    remainder = fit_remainder(measured, linear, SCALES)
    # Control: what steering can imitate, that is without the term in the update of the down projection.
    no_down = weight_shift(z, parts, without_down(update))
    at = str(Site(block.index, SiteKind.MLP_OUT))
    inputs = {"input_ids": subject.input_ids}
    through_model = first_order_shift(subject.model, as_parameters(subject, update), inputs, (at,))[at]
    post_norm = block.mlp_post_norm
    at_site = linear if post_norm is None else jvp(post_norm, (before,), (linear,))[1]
    return Evidence(
        claim=(
            _slope("slope of the remainder", remainder, 2),
            Measurement(
                "T1 against the model's forward derivative, relative",
                relative_error(at_site, through_model),
                high=EXACT,
            ),
        ),
        controls=(
            _slope("slope without the term of the down projection", fit_remainder(measured, no_down, SCALES), 2),
        ),
        notes=_kinks(parts, z),
        series={"remainder": _curve(remainder, "update")},
    )


def check_input_shift(subject: Subject) -> Evidence:
    """P2: slope of the remainder of T2, its matrix against autodiff, and what an edit at ``mlp_in`` does."""
    parts, block = mlp_parts(subject), subject.block
    if not parts.is_gated and is_piecewise_linear(parts.activation):
        return Evidence(inapplicable=_NO_SECOND_ORDER.format("in its input"))
    z, mid_output = tensors_at(subject, (SiteKind.MLP_IN, SiteKind.MLP_OUT))
    shift = drawn_input_shift(subject, parts, z)
    linear, before = input_shift(z, shift, parts), mlp_alone(subject, z)

    def measured(t: float) -> Tensor:
        return mlp_alone(subject, z + t * shift) - before

    remainder = fit_remainder(measured, linear, SCALES)
    token = z[0, -1]
    jacobian = jacfwd(lambda x: mlp_alone(subject, x))(token)
    edited_output = run(subject, (SiteKind.MLP_OUT,), edits={SiteKind.MLP_IN: lambda x: shift})[SiteKind.MLP_OUT]
    expected = mlp_alone(subject, z + shift)
    expected = expected if block.mlp_post_norm is None else block.mlp_post_norm(expected)
    # Control: one of two paths. Without a gate there is one path; then phi itself where its slope belongs.
    if isinstance(parts.weights, GatedWeights):
        name = "slope with the gated path alone"
        ungated = parts.activation(parts.activated(z)) * (shift @ parts.weights.up.T)
        wrong = linear - ungated @ parts.down.T
    else:
        name = "slope with phi in place of phi'"
        wrong = (parts.activation(parts.activated(z)) * (shift @ parts.weights.first.T)) @ parts.down.T
    controls = [_slope(name, fit_remainder(measured, wrong, SCALES), 2)]
    if block.mlp_norm is not None:
        controls.append(_slope("slope if the stream before the norm moves", _before_norm(subject, parts, shift), 2))
    return Evidence(
        claim=(
            _slope("slope of the remainder", remainder, 2),
            Measurement(
                "A against autodiff, relative", relative_error(input_jacobian(token, parts), jacobian), high=EXACT
            ),
            Measurement(
                "edit at mlp_in against the MLP on its moved input, relative",
                relative_error(edited_output - mid_output, expected - mid_output),
                high=EXACT,
            ),
        ),
        controls=tuple(controls),
        notes=_kinks(parts, z),
        series={"remainder": _curve(remainder, "shift")},
    )


def _before_norm(subject: Subject, parts: MLPParts, shift: Tensor) -> Remainder:
    """Return the remainder if the same shift is added to the stream that the norm reads, which T2 does not describe."""
    block = subject.block
    stream_kind = SiteKind.RESID_PRE if block.description.parallel else SiteKind.RESID_MID
    (stream,) = tensors_at(subject, (stream_kind,))
    norm = block.mlp_norm
    assert norm is not None  # asked for by the only caller
    z = norm(stream)
    before = mlp_alone(subject, z)
    return fit_remainder(
        lambda t: mlp_alone(subject, norm(stream + t * shift)) - before, input_shift(z, shift, parts), SCALES
    )


def check_input_second_order(subject: Subject) -> Evidence:
    """P3: slope 3 once the second-order term of T2 is subtracted as well."""
    parts = mlp_parts(subject)
    if not parts.is_gated and is_piecewise_linear(parts.activation):
        return Evidence(inapplicable=_NO_SECOND_ORDER.format("in its input"))
    (z,) = tensors_at(subject, (SiteKind.MLP_IN,))
    shift = drawn_input_shift(subject, parts, z)
    linear, second, before = input_shift(z, shift, parts), input_second_order(z, shift, parts), mlp_alone(subject, z)

    def remainder_with(factor: float) -> Remainder:
        return fit_remainder(
            lambda t: mlp_alone(subject, z + t * shift) - before - factor * t**2 * second, linear, SCALES
        )

    right = remainder_with(1.0)
    return Evidence(
        claim=(_slope("slope after the second order", right, 3),),
        controls=(
            _slope("slope without the second order", remainder_with(0.0), 3),
            _slope("slope with twice the second order", remainder_with(2.0), 3),
        ),
        notes=_kinks(parts, z),
        series={"remainder": _curve(right, "shift")},
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
        return Evidence(inapplicable=_NO_SECOND_ORDER.format("in its weights"))
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
        claim=(_slope("slope after the second order", right, 3),),
        controls=(_slope("slope without the cross term", remainder_with(without_cross), 3),),
        notes=_kinks(parts, z),
        series={"remainder": _curve(right, "update")},
    )


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
        return _output_map(weights) @ (_factor(scaling, x, weights, parts.activation, swap) @ d)

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
        return Evidence(claim=claim, controls=(wrong,), notes=_kinks(parts, z))
    swapped = along(scaled_rows, parts.weights, token, direction, swap=True)
    return Evidence(
        claim=claim,
        controls=(error(swapped, measured, "scales of gate and up exchanged"),),
        published=(wrong,),
        notes=(*_kinks(parts, z), f"the published form has no shape that fits W of {tuple(parts.down.shape[::-1])}"),
    )


def _output_map(weights: MLPWeights) -> Tensor:
    return weights.down if isinstance(weights, GatedWeights) else weights.second


def _factor(
    scaling: Callable[[Tensor, Tensor], Tensor], z: Tensor, weights: MLPWeights, activation: Activation, swap: bool
) -> Tensor:
    """Return ``J`` of T2 at one token with the given way to scale, ``(d_ff, d)``; ``swap`` exchanges the scales."""
    if not isinstance(weights, GatedWeights):
        return scaling(activation_slope(activation, z @ weights.first.T + weights.first_bias), weights.first)
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    of_gate, of_up = activation_slope(activation, a_g) * a_u, activation(a_g)
    if swap:
        of_gate, of_up = of_up, of_gate
    return scaling(of_gate, weights.gate) + scaling(of_up, weights.up)


_GROUP = "shifts of one MLP"
_SMOOTH = "phi smooth where it is evaluated (one activation pattern); the change small beside phi's width"

PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        1,
        _GROUP,
        "first order of a weight update",
        "dy = (DW_d) m + W_d[(phi'(a_g) * a_u) * (DW_g z) + phi(a_g) * (DW_u z)] up to second order.",
        _SMOOTH,
        Source.POST,
        check_weight_shift,
    ),
    Proposition(
        2,
        _GROUP,
        "first order of an edit of the MLP's input",
        "dy = W_d[(phi'(a_g) * a_u) * (W_g D) + phi(a_g) * (W_u D)] = A D up to second order.",
        _SMOOTH + "; D is added to the MLP's input, after the norm",
        Source.POST,
        check_input_shift,
    ),
    Proposition(
        3,
        _GROUP,
        "second order of an edit of the MLP's input",
        "The next term is W_d[phi' * (W_g D) * (W_u D) + phi'' * a_u * (W_g D)^2 / 2].",
        _SMOOTH,
        Source.OURS,
        check_input_second_order,
    ),
    Proposition(
        4,
        _GROUP,
        "a bilinear MLP ends at second order",
        "With phi = id the remainder of any finite D is exactly W_d[(W_g D) * (W_u D)].",
        "a gate; phi replaced by the identity",
        Source.OURS,
        check_bilinear,
    ),
    Proposition(
        5,
        _GROUP,
        "second order of a weight update",
        "The next term is P3's with D replaced by the changes, and DW_d[phi' * a_u * (DW_g z) + phi * (DW_u z)].",
        _SMOOTH,
        Source.OURS,
        check_weight_second_order,
    ),
    Proposition(
        6,
        _GROUP,
        "the factors scale rows",
        "J = diag(phi'(a_g) * a_u) W_g + diag(phi(a_g)) W_u: every hidden channel scales its row.",
        _SMOOTH,
        Source.POST,
        check_row_scaling,
        published="The post writes the scaling as 1 a^T (.) W: it scales columns, and fits only where d_ff = d.",
    ),
)
