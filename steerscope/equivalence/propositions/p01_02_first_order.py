r"""P1, P2: first-order shifts of one MLP, under weight updates and under edits of its input.

With ``a_g = W_g z``, ``a_u = W_u z`` and ``m = phi(a_g) * a_u`` a gated MLP is ``y = W_d m``. Moving the weights
by ``t`` times an update, or the input by ``t`` times a shift, and expanding in ``t``

.. math:: y(t) = y + t\, y_1 + t^2 y_2 + O(t^3)

gives the first-order terms of P1 and P2 as ``y_1`` and the second-order terms of P3 and P5 as ``y_2``. So the
remainder after ``y_1`` falls with slope 2 in ``t`` and after ``y_2`` with slope 3; a wrong or missing term shows
as slope 1 or 2. Measured values come from the model's own modules, formulas from
:mod:`steerscope.equivalence.closed_forms`; a plain MLP is tried against the same statements without a gate.
"""

from __future__ import annotations

from torch import Tensor
from torch.func import jacfwd, jvp

from steerscope.equivalence.closed_forms import (
    GatedWeights,
)
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.mlp_expansion import (
    GROUP,
    NO_SECOND_ORDER,
    SCALES,
    SMOOTH,
    drawn_input_shift,
    drawn_weight_update,
    input_jacobian,
    input_shift,
    kink_notes,
    remainder_curve,
    slope_within,
    weight_shift,
    without_down,
)
from steerscope.equivalence.propositions.parts import (
    MLPParts,
    as_parameters,
    is_piecewise_linear,
    mlp_alone,
    mlp_parts,
    moved,
    relative_error,
    run,
    stream_before_mlp,
    tensors_at,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import Remainder, fit_remainder
from steerscope.equivalence.shifts import first_order_shift
from steerscope.sites import Site, SiteKind

# Two exact derivatives in float64 differ by rounding of sums over d_ff.
EXACT = 1e-10

# --- checks ---


def check_weight_shift(subject: Subject) -> Evidence:
    """P1: slope of its remainder, and its term against the whole model's forward derivative."""
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
            slope_within("slope of the remainder", remainder, 2),
            Measurement(
                "P1 against the model's forward derivative, relative",
                relative_error(at_site, through_model),
                high=EXACT,
            ),
        ),
        controls=(
            slope_within("slope without the term of the down projection", fit_remainder(measured, no_down, SCALES), 2),
        ),
        notes=kink_notes(parts, z),
        series={"remainder": remainder_curve(remainder, "update")},
    )


def check_input_shift(subject: Subject) -> Evidence:
    """P2: slope of its remainder, its matrix against autodiff, and what an edit at ``mlp_in`` does."""
    parts, block = mlp_parts(subject), subject.block
    if not parts.is_gated and is_piecewise_linear(parts.activation):
        return Evidence(inapplicable=NO_SECOND_ORDER.format("in its input"))
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
    controls = [slope_within(name, fit_remainder(measured, wrong, SCALES), 2)]
    if block.mlp_norm is not None:
        before_norm = _before_norm(subject, parts, shift)
        controls.append(slope_within("slope if the stream before the norm moves", before_norm, 2))
    return Evidence(
        claim=(
            slope_within("slope of the remainder", remainder, 2),
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
        notes=kink_notes(parts, z),
        series={"remainder": remainder_curve(remainder, "shift")},
    )


def _before_norm(subject: Subject, parts: MLPParts, shift: Tensor) -> Remainder:
    """Return the remainder if the same shift is added to the stream that the norm reads, which P2 does not describe."""
    stream, norm = stream_before_mlp(subject), subject.block.mlp_norm
    assert norm is not None  # asked for by the only caller
    z = norm(stream)
    before = mlp_alone(subject, z)
    return fit_remainder(
        lambda t: mlp_alone(subject, norm(stream + t * shift)) - before, input_shift(z, shift, parts), SCALES
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        1,
        GROUP,
        "first order of a weight update",
        "dy = (DW_d) m + W_d[(phi'(a_g) * a_u) * (DW_g z) + phi(a_g) * (DW_u z)] up to second order.",
        SMOOTH,
        Source.POST,
        check_weight_shift,
    ),
    Proposition(
        2,
        GROUP,
        "first order of an edit of the MLP's input",
        "dy = W_d[(phi'(a_g) * a_u) * (W_g D) + phi(a_g) * (W_u D)] = A D up to second order.",
        SMOOTH + "; D is added to the MLP's input, after the norm",
        Source.POST,
        check_input_shift,
    ),
)
