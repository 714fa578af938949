r"""First- and second-order shifts of one MLP, written out: pure functions of tensors, no model.

Notation, as in docs/notation.md: ``z`` is what the MLP receives (after the norm), ``a_g = W_g z``,
``a_u = W_u z``; a gated MLP computes ``y = W_d (phi(a_g) * a_u)``, a plain one ``y = W_2 phi(a) + b_2`` with
``a = W_1 z + b_1``; ``*`` is elementwise. All weights are stored output-first (GPT-2's ``Conv1D`` holds the
transpose). Tensors of tokens have shape ``(..., d)``; shifts have the units of ``y`` and are not scaled by
any step size.

Derivatives of ``phi`` are forward derivatives of the function passed in, so any elementwise activation works.
Every expansion assumes that ``phi`` is smooth where it is evaluated: at a kink of ReLU the remainder is not
of the next order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


class GatedWeights(NamedTuple):
    """The weights of a gated MLP, or a change of them: gate and up ``(d_ff, d)``, down ``(d, d_ff)``."""

    gate: Tensor
    up: Tensor
    down: Tensor


class PlainWeights(NamedTuple):
    """The weights of a plain MLP, or a change of them: ``(d_ff, d)``, ``(d_ff,)``, ``(d, d_ff)``, ``(d,)``."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


def activation_slope(activation: Activation, x: Tensor) -> Tensor:
    """Return ``phi'(x)`` of an elementwise activation, in the shape of ``x``.

    Args:
        activation: phi, elementwise.
        x: Where, any shape.

    Returns:
        The derivative at every entry.
    """
    # The tangent of an elementwise function along ones is its derivative at every entry.
    return torch.func.jvp(activation, (x,), (torch.ones_like(x),))[1]


def activation_curvature(activation: Activation, x: Tensor) -> Tensor:
    """Return ``phi''(x)`` of an elementwise activation, in the shape of ``x``.

    Args:
        activation: phi, elementwise.
        x: Where, any shape.

    Returns:
        The second derivative at every entry.
    """
    # Under no_grad torch takes SiLU's slope by a fused kernel that has no forward derivative of its own.
    with torch.enable_grad():
        return torch.func.jvp(lambda t: activation_slope(activation, t), (x,), (torch.ones_like(x),))[1]


# --- gated: y = W_d (phi(W_g z) * W_u z) ---


def gated_mlp(z: Tensor, weights: GatedWeights, activation: Activation) -> Tensor:
    """Return ``W_d (phi(W_g z) * W_u z)`` for ``z`` of shape ``(..., d)``.

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        The MLP's output, ``(..., d)``.
    """
    return (activation(z @ weights.gate.T) * (z @ weights.up.T)) @ weights.down.T


def gated_weight_shift(z: Tensor, weights: GatedWeights, update: GatedWeights, activation: Activation) -> Tensor:
    r"""Return the first-order shift of a gated MLP's output under an update of its weights.

    .. math:: \delta y = \Delta W_d\, m
        + W_d\left[(\varphi'(a_g) * a_u) * (\Delta W_g z) + \varphi(a_g) * (\Delta W_u z)\right]

    with :math:`m = \varphi(a_g) * a_u`. The remainder is O(|update|^2), its leading part
    :func:`gated_weight_second_order`.

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: Where the expansion starts.
        update: The change, in the same shapes.
        activation: phi, elementwise.

    Returns:
        Shift of the output, ``(..., d)``.

    Cost: five products with weights, about twice a forward. Source: P1.
    """
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    d_g, d_u = z @ update.gate.T, z @ update.up.T
    phi, slope = activation(a_g), activation_slope(activation, a_g)
    return (phi * a_u) @ update.down.T + (slope * a_u * d_g + phi * d_u) @ weights.down.T


def gated_weight_second_order(z: Tensor, weights: GatedWeights, update: GatedWeights, activation: Activation) -> Tensor:
    r"""Return the second-order term that follows :func:`gated_weight_shift`.

    .. math:: W_d\left[\varphi' * d_g * d_u + \tfrac12 \varphi'' * a_u * d_g^2\right]
        + \Delta W_d\left[\varphi' * a_u * d_g + \varphi * d_u\right],
        \quad d_g = \Delta W_g z,\; d_u = \Delta W_u z

    The second bracket is the cross term between the down projection and the rest; without it the remainder
    stays of second order. Source: P5.

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: Where the expansion starts.
        update: The change, in the same shapes.
        activation: phi, elementwise.

    Returns:
        The term at scale 1 of the update, ``(..., d)``.
    """
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    d_g, d_u = z @ update.gate.T, z @ update.up.T
    phi, slope = activation(a_g), activation_slope(activation, a_g)
    curvature = activation_curvature(activation, a_g)
    inner = slope * d_g * d_u + 0.5 * curvature * a_u * d_g.square()
    return inner @ weights.down.T + (slope * a_u * d_g + phi * d_u) @ update.down.T


def gated_input_shift(z: Tensor, shift: Tensor, weights: GatedWeights, activation: Activation) -> Tensor:
    r"""Return the first-order shift of a gated MLP's output when its input moves by ``shift``.

    .. math:: \delta y = W_d\left[(\varphi'(a_g) * a_u) * (W_g \delta) + \varphi(a_g) * (W_u \delta)\right]

    The variable is the MLP's own input, after the norm (an edit at ``mlp_in``), not the stream.

    Args:
        z: What the MLP receives, ``(..., d)``.
        shift: Its change, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        Shift of the output, ``(..., d)``; the remainder is O(|shift|^2), its leading part
        :func:`gated_input_second_order`.

    Cost: five products with weights. Source: P2.
    """
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    gated = activation_slope(activation, a_g) * a_u * (shift @ weights.gate.T)
    ungated = activation(a_g) * (shift @ weights.up.T)
    return (gated + ungated) @ weights.down.T


def gated_input_second_order(z: Tensor, shift: Tensor, weights: GatedWeights, activation: Activation) -> Tensor:
    r"""Return the second-order term that follows :func:`gated_input_shift`.

    .. math:: W_d\left[\varphi' * (W_g\delta) * (W_u\delta) + \tfrac12 \varphi'' * a_u * (W_g\delta)^2\right]

    Args:
        z: What the MLP receives, ``(..., d)``.
        shift: Change of ``z``, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        The term at scale 1 of the shift, ``(..., d)``.

    Source: P3. For ``phi`` the identity the expansion ends here (P4).
    """
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    d_g, d_u = shift @ weights.gate.T, shift @ weights.up.T
    inner = activation_slope(activation, a_g) * d_g * d_u
    return (inner + 0.5 * activation_curvature(activation, a_g) * a_u * d_g.square()) @ weights.down.T


def gated_input_jacobian(z: Tensor, weights: GatedWeights, activation: Activation) -> Tensor:
    r"""Return the derivative of a gated MLP's output with respect to its input.

    .. math:: A = W_d J, \qquad J = \mathrm{diag}(\varphi'(a_g) * a_u)\, W_g + \mathrm{diag}(\varphi(a_g))\, W_u

    The diagonals stand on the left: they scale the *rows* (hidden channels) of ``W_g`` and ``W_u``. The
    factorisation in the authors' post (P6) broadcasts ``a`` along the rows, which scales columns; that is another
    matrix, and where ``d_ff == d`` its shape gives no warning (P6).

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        ``(..., d, d)`` indexed ``[output channel, input channel]``.

    Cost: one ``d x d_ff x d`` product per token. Source: P2, P6.
    """
    a_g, a_u = z @ weights.gate.T, z @ weights.up.T
    gate_rows = (activation_slope(activation, a_g) * a_u).unsqueeze(-1) * weights.gate
    up_rows = activation(a_g).unsqueeze(-1) * weights.up
    return weights.down @ (gate_rows + up_rows)


# --- plain: y = W_2 phi(W_1 z + b_1) + b_2 ---


def plain_mlp(z: Tensor, weights: PlainWeights, activation: Activation) -> Tensor:
    """Return ``W_2 phi(W_1 z + b_1) + b_2`` for ``z`` of shape ``(..., d)``.

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        The MLP's output, ``(..., d)``.
    """
    return activation(z @ weights.first.T + weights.first_bias) @ weights.second.T + weights.second_bias


def plain_weight_shift(z: Tensor, weights: PlainWeights, update: PlainWeights, activation: Activation) -> Tensor:
    r"""Return the first-order shift of a plain MLP's output under an update of its weights.

    .. math:: \delta y = \Delta W_2\, \varphi(a) + \Delta b_2
        + W_2\left[\varphi'(a) * (\Delta W_1 z + \Delta b_1)\right]

    Source: P1 without a gate.

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: Where the expansion starts.
        update: The change, in the same shapes.
        activation: phi, elementwise.

    Returns:
        Shift of the output, ``(..., d)``.
    """
    a = z @ weights.first.T + weights.first_bias
    d_a = z @ update.first.T + update.first_bias
    inner = activation_slope(activation, a) * d_a
    return activation(a) @ update.second.T + update.second_bias + inner @ weights.second.T


def plain_weight_second_order(z: Tensor, weights: PlainWeights, update: PlainWeights, activation: Activation) -> Tensor:
    r"""Return the second-order term that follows :func:`plain_weight_shift`.

    .. math:: \tfrac12 W_2\left[\varphi''(a) * d_a^2\right] + \Delta W_2\left[\varphi'(a) * d_a\right],
        \quad d_a = \Delta W_1 z + \Delta b_1

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: Where the expansion starts.
        update: The change, in the same shapes.
        activation: phi, elementwise.

    Returns:
        The term at scale 1 of the update, ``(..., d)``.

    Source: P5 without a gate.
    """
    a = z @ weights.first.T + weights.first_bias
    d_a = z @ update.first.T + update.first_bias
    curved = 0.5 * activation_curvature(activation, a) * d_a.square()
    return curved @ weights.second.T + (activation_slope(activation, a) * d_a) @ update.second.T


def plain_input_shift(z: Tensor, shift: Tensor, weights: PlainWeights, activation: Activation) -> Tensor:
    r"""Return the first-order shift of a plain MLP's output when its input moves by ``shift``.

    .. math:: \delta y = W_2\left[\varphi'(a) * (W_1 \delta)\right]

    Source: P2 without a gate.

    Args:
        z: What the MLP receives, ``(..., d)``.
        shift: Change of ``z``, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        Shift of the output, ``(..., d)``.
    """
    a = z @ weights.first.T + weights.first_bias
    return (activation_slope(activation, a) * (shift @ weights.first.T)) @ weights.second.T


def plain_input_second_order(z: Tensor, shift: Tensor, weights: PlainWeights, activation: Activation) -> Tensor:
    r"""Return the second-order term that follows :func:`plain_input_shift`.

    .. math:: \tfrac12 W_2\left[\varphi''(a) * (W_1\delta)^2\right]

    Args:
        z: What the MLP receives, ``(..., d)``.
        shift: Change of ``z``, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        The term at scale 1 of the shift, ``(..., d)``.

    Source: P3 without a gate.
    """
    a = z @ weights.first.T + weights.first_bias
    return (0.5 * activation_curvature(activation, a) * (shift @ weights.first.T).square()) @ weights.second.T


def plain_input_jacobian(z: Tensor, weights: PlainWeights, activation: Activation) -> Tensor:
    r"""Return the derivative ``(..., d, d)`` of a plain MLP's output with respect to its input.

    .. math:: A = W_2\, \mathrm{diag}(\varphi'(a))\, W_1

    Rows of ``W_1`` are scaled, see :func:`gated_input_jacobian`. Source: P2 without a gate.

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: The MLP's weights.
        activation: phi, elementwise.

    Returns:
        ``(..., d, d)`` indexed ``[output channel, input channel]``.
    """
    a = z @ weights.first.T + weights.first_bias
    return weights.second @ (activation_slope(activation, a).unsqueeze(-1) * weights.first)
