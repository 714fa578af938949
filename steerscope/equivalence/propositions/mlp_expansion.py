"""The closed forms of an MLP for whichever layout it has, and changes of a size at which orders can be told apart.

Gated and plain MLPs have their own formulas in :mod:`steerscope.equivalence.closed_forms`; here one name stands for
both, so that a check is written once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steerscope.equivalence.closed_forms import (
    GatedWeights,
    gated_input_jacobian,
    gated_input_second_order,
    gated_input_shift,
    gated_weight_second_order,
    gated_weight_shift,
    plain_input_jacobian,
    plain_input_second_order,
    plain_input_shift,
    plain_weight_second_order,
    plain_weight_shift,
)
from steerscope.equivalence.propositions.base import Measurement, Series, curve
from steerscope.equivalence.propositions.parts import (
    MLPParts,
    MLPWeights,
    down_of,
    drawn_update,
    is_piecewise_linear,
    mlp_parts,
    preactivation,
    tensors_at,
    with_down,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import Remainder
from steerscope.sites import SiteKind

# Scales at which the largest change of a pre-activation is 0.03 to 0.003: small beside the width of any phi
# (about 1), so that the next order bends the slope by 0.03 at most; large enough that a third-order remainder
# stays above rounding.
SCALES = (3e-2, 1e-2, 3e-3)

# --- the right formula for the layout ---


def weight_shift(z: Tensor, parts: MLPParts, update: MLPWeights) -> Tensor:
    """Return the first-order shift of the MLP's output under an update of its weights.

    Args:
        z: What the MLP receives, ``(..., d)``.
        parts: The MLP where the expansion starts.
        update: The change of its weights, in their shapes.

    Returns:
        ``(..., d)``.
    """
    if isinstance(parts.weights, GatedWeights) and isinstance(update, GatedWeights):
        return gated_weight_shift(z, parts.weights, update, parts.activation)
    return plain_weight_shift(z, parts.weights, update, parts.activation)  # type: ignore[arg-type]


def weight_second_order(z: Tensor, parts: MLPParts, update: MLPWeights) -> Tensor:
    """Return the second-order term that follows :func:`weight_shift`.

    Args:
        z: What the MLP receives, ``(..., d)``.
        parts: The MLP where the expansion starts.
        update: The change of its weights, in their shapes.

    Returns:
        The term at scale 1 of the update, ``(..., d)``.
    """
    if isinstance(parts.weights, GatedWeights) and isinstance(update, GatedWeights):
        return gated_weight_second_order(z, parts.weights, update, parts.activation)
    return plain_weight_second_order(z, parts.weights, update, parts.activation)  # type: ignore[arg-type]


def input_shift(z: Tensor, shift: Tensor, parts: MLPParts) -> Tensor:
    """Return the first-order shift of the MLP's output when its input moves by ``shift``.

    Args:
        z: What the MLP receives, ``(..., d)``.
        shift: Change of ``z``, in its shape.
        parts: The MLP.

    Returns:
        ``(..., d)``.
    """
    if isinstance(parts.weights, GatedWeights):
        return gated_input_shift(z, shift, parts.weights, parts.activation)
    return plain_input_shift(z, shift, parts.weights, parts.activation)


def input_second_order(z: Tensor, shift: Tensor, parts: MLPParts) -> Tensor:
    """Return the second-order term that follows :func:`input_shift`.

    Args:
        z: What the MLP receives, ``(..., d)``.
        shift: Change of ``z``, in its shape.
        parts: The MLP.

    Returns:
        The term at scale 1 of the shift, ``(..., d)``.
    """
    if isinstance(parts.weights, GatedWeights):
        return gated_input_second_order(z, shift, parts.weights, parts.activation)
    return plain_input_second_order(z, shift, parts.weights, parts.activation)


def input_jacobian(z: Tensor, parts: MLPParts) -> Tensor:
    """Return ``A`` with ``dy = A dz`` at one token ``z`` (d,), for a gated or a plain MLP: ``(d, d)``.

    Args:
        z: What the MLP receives at one token, ``(d,)``.
        parts: The MLP.

    Returns:
        ``(d, d)`` indexed ``[output channel, input channel]``.
    """
    if isinstance(parts.weights, GatedWeights):
        return gated_input_jacobian(z, parts.weights, parts.activation)
    return plain_input_jacobian(z, parts.weights, parts.activation)


# --- updates and shifts of a size at which orders can be told apart ---


def _unit(change: Tensor, parts: MLPParts, z: Tensor) -> float:
    """Return the factor that makes the largest change of a pre-activation 1, or keeps ReLU short of every kink."""
    factor = 1 / float(change.abs().max())
    if is_piecewise_linear(parts.activation):
        nearest = float((parts.activated(z).abs() / change.abs().clamp_min(1e-300)).min())
        factor = min(factor, 0.9 * nearest / max(SCALES))
    return factor


def drawn_weight_update(subject: Subject, parts: MLPParts, z: Tensor) -> MLPWeights:
    """Return a random update; at scale 1 the largest change of a pre-activation is 1.

    Args:
        subject: Seeds the draw.
        parts: The MLP; with ReLU the update stays short of every kink instead.
        z: What the MLP receives, ``(..., d)``.

    Returns:
        Changes in the shapes of the weights.
    """
    update = drawn_update(subject, parts, salt=100)
    factor = _unit(preactivation(z, update), parts, z)
    return type(update)(*(factor * change for change in update))


def drawn_input_shift(subject: Subject, parts: MLPParts, z: Tensor) -> Tensor:
    """Return a random shift of every token, ``z``'s shape; scaled as :func:`drawn_weight_update`.

    Args:
        subject: Seeds the draw.
        parts: The MLP; with ReLU the shift stays short of every kink instead.
        z: What the MLP receives, ``(..., d)``.

    Returns:
        ``(..., d)``.
    """
    shift = subject.draw(*z.shape, salt=110)
    return shift * _unit(parts.activated(z + shift) - parts.activated(z), parts, z)


def without_down(update: MLPWeights) -> MLPWeights:
    """Return an update that leaves the map that writes as it is."""
    return with_down(update, torch.zeros_like(down_of(update)))


def central_difference(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float) -> Tensor:
    """Return the derivative of ``function`` along ``direction`` by fourth-order central differences.

    Args:
        function: Any smooth function of a tensor.
        x: Where the derivative is taken.
        direction: In the shape of ``x``.
        step: Distance between the points, in units of ``direction``.

    Returns:
        The derivative per unit of ``direction``, in the shape of the function's values; its error is of order
        ``step**4``.
    """
    near = function(x + step * direction) - function(x - step * direction)
    far = function(x + 2 * step * direction) - function(x - 2 * step * direction)
    return (8 * near - far) / (12 * step)


def at_last_token(subject: Subject) -> tuple[MLPParts, Tensor]:
    """Return the MLP of the subject's block, and what it reads at the last token of the first sequence, ``(d,)``."""
    (z,) = tensors_at(subject, (SiteKind.MLP_IN,))
    return mlp_parts(subject), z[0, -1]


# --- what the checks of P1 to P6 share ---

GROUP = "shifts of one MLP"
SMOOTH = "phi smooth where it is evaluated (one activation pattern); the change small beside phi's width"
NO_SECOND_ORDER = (
    "phi is piecewise linear: within one activation pattern a plain MLP's expansion {} ends with the terms that are "
    "subtracted, and no remainder is left whose slope could be measured"
)
# Of slopes that are whole numbers: a wrong order is off by 1.
SLOPE_TOLERANCE = 0.05


def slope_within(name: str, remainder: Remainder, order: int) -> Measurement:
    """Return the slope of a remainder as a measurement that has to be ``order``, within the tolerance.

    Args:
        name: Name of the measurement.
        remainder: The remainder at several scales.
        order: 2 after the first-order term, 3 after the second.

    Returns:
        The measurement with its interval.
    """
    return Measurement(name, remainder.slope, order - SLOPE_TOLERANCE, order + SLOPE_TOLERANCE)


def remainder_curve(remainder: Remainder, of: str) -> Series:
    """Return a remainder against the scale of the change ``of`` something, for a figure.

    Args:
        remainder: The remainder at several scales.
        of: What is scaled, for the axis: an update or a shift.

    Returns:
        Scale and relative remainder, for logarithmic axes.
    """
    y_name = "remainder / predicted shift"
    return curve(
        f"scale of the {of} (1: largest change of a pre-activation is 1)", remainder.scales, y_name, remainder.relative
    )


def kink_notes(parts: MLPParts, z: Tensor) -> tuple[str, ...]:
    """Return what a reader should know where phi has kinks; nothing where it is smooth.

    Args:
        parts: The MLP.
        z: What the MLP receives, ``(..., d)``.

    Returns:
        One sentence, or none.
    """
    if not is_piecewise_linear(parts.activation):
        return ()
    nearest = float(parts.activated(z).abs().min())
    return (f"phi has kinks; the change was kept short of the nearest one ({nearest:.1e} away), none was crossed",)
