r"""P24, P25: Lipschitz bounds of a norm and of an MLP, the factors that P23 multiplies.

Norms and norms alone make a block's constant finite: with :math:`N(x) = \sqrt n\, x / |x|` and unit vectors u, u',
:math:`|u - u'|^2 = (|x - x'|^2 - (|x| - |x'|)^2) / (|x||x'|)`, so that (P24)

.. math:: |N(x) - N(x')| \le \sqrt n\, |x - x'| / \sqrt{|x||x'|}

with equality for vectors of one length. A map behind the norm that fine-tuning changes, :math:`W` to :math:`W'`, adds
its own change times the length of what the norm returns:

.. math:: |W N(x) - W' N(x')| \le |W|\,\sqrt n\, |x - x'| / \sqrt{|x||x'|} + \sqrt n\,|W - W'| ,

attained too. The gated MLP multiplies two linear maps of its input and is Lipschitz on balls only (P25):

.. math:: \mathrm{Lip} \le |W_d|\left(\sup|\varphi'| \max|a_u|\, |W_g| + \max|\varphi(a_g)|\, |W_u|\right).

It is attained, up to the flatness of :math:`\varphi`, by one hidden unit whose two maps read along one direction. For
a whole MLP it is far above the steepest slope, by a factor that the check reports.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steerscope.equivalence.closed_forms import (
    Activation,
    GatedWeights,
    PlainWeights,
    activation_slope,
    gated_input_jacobian,
    plain_input_jacobian,
)
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.norms import centred, norm_parts, norm_size
from steerscope.equivalence.propositions.parts import MLPWeights, mlp_alone, mlp_parts, output_first
from steerscope.equivalence.propositions.runs import run_at, unit
from steerscope.equivalence.propositions.subject import Subject
from steerscope.sites import SiteKind

GROUP = "error control"

# P24: the bound is attained; only rounding may cross it.
ROUNDING = 1e-12
# P25: the bound is attained by one hidden unit to within the flatness of phi on the ball: a unit of SiLU far from its
# steepest point has slope 1 where the bound has sup|phi'| = 1.0998, in both terms.
TIGHT = 0.8
# A unit whose second input is a million times the first: what the bound adds for the first is of that order.
PLANE = 1 - 1e-4
# Relative to the model's own input in P25: the ball is far from a point.
RADIUS = 0.5


# --- formulas ---


def norm_bound(first: Tensor, second: Tensor) -> Tensor:
    """Return ``sqrt(n) |x - x'| / sqrt(|x| |x'|)`` for rows ``(..., n)``, a norm without gain. Source: P24.

    Args:
        first: ``(..., n)``.
        second: ``(..., n)``.

    Returns:
        One bound per row, ``(...)``.
    """
    lengths = first.norm(dim=-1) * second.norm(dim=-1)
    return first.shape[-1] ** 0.5 * (first - second).norm(dim=-1) / lengths.sqrt()


def read_bound(first: Tensor, second: Tensor, weight: Tensor, change: Tensor) -> Tensor:
    """Return ``|W| norm_bound(x, x') + sqrt(n) |W - W'|``, for what a map reads behind a norm. Source: P24.

    Args:
        first: x, ``(..., n)``.
        second: x', ``(..., n)``.
        weight: W, ``(m, n)``.
        change: ``W - W'``, ``(m, n)``.

    Returns:
        One bound on ``|W N(x) - W' N(x')|`` per row, ``(...)``.
    """
    return _norm(weight) * norm_bound(first, second) + first.shape[-1] ** 0.5 * _norm(change)


def ball_lipschitz(weights: MLPWeights, activation: Activation, centre: Tensor, radius: float, slope: float) -> float:
    """Return a Lipschitz constant of an MLP on the ball of ``radius`` about ``centre`` (d).

    A plain MLP has one everywhere: ``|W_2| sup|phi'| |W_1|``.

    Args:
        weights: The MLP's weights, output-first.
        activation: phi.
        centre: Middle of the ball.
        radius: Its radius.
        slope: ``sup |phi'|``, see :func:`steepest`.

    Returns:
        A bound on the length of the output's change per length of the input's change.

    Cost: three spectral norms. Source: P25.
    """
    if not isinstance(weights, GatedWeights):
        return float(_norm(weights.second) * slope * _norm(weights.first))
    gate_rows, up_rows = weights.gate.norm(dim=1), weights.up.norm(dim=1)
    largest_up = ((weights.up @ centre).abs() + radius * up_rows).max()
    # phi is slope-Lipschitz, so it exceeds its value at the centre by at most slope * radius * |row|.
    largest_phi = (activation(weights.gate @ centre).abs() + slope * radius * gate_rows).max()
    inner = slope * largest_up * _norm(weights.gate) + largest_phi * _norm(weights.up)
    return float(_norm(weights.down) * inner)


def steepest(activation: Activation) -> tuple[float, float]:
    """Return ``sup |phi'|`` and where it is attained, on a fine grid (SiLU: 1.0998, GELU: 1.129)."""
    grid = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    slopes = activation_slope(activation, grid).abs()
    index = int(slopes.argmax())
    return float(slopes[index]), float(grid[index])


def normalised(x: Tensor, eps: float, is_centred: bool) -> Tensor:
    """Return ``x / sqrt(mean x^2 + eps)``, for LayerNorm of ``x - mean``, rows ``(..., n)``, no gain.

    Args:
        x: ``(..., n)``.
        eps: The norm's epsilon.
        is_centred: Whether the mean is subtracted, as in LayerNorm.

    Returns:
        ``(..., n)``.
    """
    return centred(x, is_centred) / norm_size(x, eps, is_centred)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, ord=2)


# --- checks ---


def _check_norm(subject: Subject) -> Evidence:
    block = subject.block
    norm = block.attn_norm or block.mlp_norm or block.attn_post_norm or block.mlp_post_norm
    if norm is None:
        return Evidence(inapplicable="the block has no norm")
    width = subject.site_map.d_model
    norm_of = norm_parts(norm, width)

    def pure(x: Tensor) -> Tensor:
        return normalised(x, 0.0, norm_of.is_centred)

    def pairs(salt: int) -> Tensor:
        drawn = subject.draw(2000, width, salt=salt) * (2 * subject.draw(2000, 1, salt=salt + 1)).exp()
        return centred(drawn, norm_of.is_centred)

    first, second = pairs(320), pairs(322)
    near = first + 1e-3 * second
    equal = second * (first.norm(dim=-1) / second.norm(dim=-1)).unsqueeze(-1)

    def ratio(x: Tensor, y: Tensor, bound: Tensor) -> float:
        return float(((pure(x) - pure(y)).norm(dim=-1) / bound).max())

    # The norm of the model, with its own epsilon and gain: the largest gain enters the bound.
    moved = (norm(first) - norm(near)).norm(dim=-1), (norm(first) - norm(second)).norm(dim=-1)
    limit = norm_of.gain.abs().max()
    real = max(
        float((distance / (limit * norm_bound(first, other))).max())
        for distance, other in zip(moved, (near, second), strict=True)
    )
    reads = _read_ratios(subject, norm_of.is_centred)
    factor = (2 * subject.draw(2000, 1, salt=324)).exp()
    invariance = (pure(factor * first) - pure(first)).norm() / pure(first).norm()
    longest = torch.maximum(first.norm(dim=-1), second.norm(dim=-1))
    wrong = norm_bound(first, second) * (first.norm(dim=-1) * second.norm(dim=-1)).sqrt() / longest
    return Evidence(
        claim=(
            Measurement(
                "largest ratio to the bound, no gain, epsilon 0",
                max(ratio(first, other, norm_bound(first, other)) for other in (near, second, equal)),
                low=1 - 1e-9,
                high=1 + ROUNDING,
                of_subject=False,
            ),
            Measurement("largest ratio to the bound, the model's own norm, gain in the bound", real, high=1 + ROUNDING),
            Measurement("relative change of N under N(c x)", float(invariance), high=ROUNDING, of_subject=False),
            Measurement("|W N(x) - W' N(x')| over its bound, the model's W, drawn x", reads.drawn, high=1 + ROUNDING),
            Measurement(
                "the same, x and W' along W's first singular vectors", reads.worst, low=1 - 1e-9, high=1 + ROUNDING
            ),
        ),
        controls=(
            Measurement(
                "largest ratio to the bound with the longer vector instead of the geometric mean",
                ratio(first, second, wrong),
                low=1 - 1e-9,
                high=1 + ROUNDING,
                of_subject=False,
            ),
            Measurement(
                "|W N(x) - W' N(x')| over the bound without |W - W'|", reads.unchanged, low=1 - 1e-9, high=1 + ROUNDING
            ),
        ),
        notes=(
            f"{'LayerNorm: all vectors centred' if norm_of.is_centred else 'RMSNorm'}, epsilon {norm_of.eps:g}, "
            f"largest gain {float(limit):.3g}",
        ),
    )


class _ReadRatios(NamedTuple):
    """Ratios of ``|W N(x) - W' N(x')|`` to its bound: drawn, in the worst case, and there without the second term."""

    drawn: float
    worst: float
    unchanged: float


def _read_ratios(subject: Subject, is_centred: bool) -> _ReadRatios:
    weight = output_first(subject.block.mlp_reads[0])
    if is_centred:  # what LayerNorm returns has no mean, so a map's part along it is never read
        weight = weight - weight.mean(1, keepdim=True)
    width = weight.shape[1]

    def ratios(x: Tensor, y: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        shift = normalised(x, 0.0, is_centred) @ weight.T - normalised(y, 0.0, is_centred) @ (weight - change).T
        found = shift.norm(dim=-1)
        return found / read_bound(x, y, weight, change), found / (_norm(weight) * norm_bound(x, y))

    drawn = centred(subject.draw(2, 200, width, salt=340), is_centred)
    tuned = 0.1 * weight.square().mean().sqrt() * subject.draw(*weight.shape, salt=341)
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    # x and x' of one length, apart along the direction W stretches most; W' differs from W where x' points.
    x, y = right[1] + 0.3 * right[0], right[1] - 0.3 * right[0]
    worst, unchanged = ratios(x, y, 0.1 * _norm(weight) * torch.outer(left[:, 0], unit(y)))
    return _ReadRatios(float(ratios(drawn[0], drawn[1], tuned)[0].max()), float(worst), float(unchanged))


def _slope_over_bound(activation: Activation, slope: float) -> float:
    """Return slope over bound of an MLP with one hidden unit, on a ball of radius 0, where phi is steepest.

    ``phi(z_1) z_2`` at a large ``z_2``: its gradient ``(phi' z_2, phi)`` has the bound ``sup|phi'| |z_2| + |phi|``.
    """
    _, at = steepest(activation)
    row = torch.eye(2, dtype=torch.float64)
    weights = GatedWeights(row[:1], row[1:], torch.ones(1, 1, dtype=torch.float64))
    point = torch.tensor([at, 1e6], dtype=torch.float64)
    gradient = gated_input_jacobian(point, weights, activation)
    return float(gradient.norm()) / ball_lipschitz(weights, activation, point, 0.0, slope)


def _own_unit_ratio(weights: MLPWeights, activation: Activation, centre: Tensor, radius: float, slope: float) -> float:
    """Return the steepest slope found over the bound, for one hidden unit of the model's on the ball.

    Of a gated MLP the unit's up row is turned along its gate row, keeping its length, or no point could be the worst
    for both. The unit is the one whose gate is nearest to zero at the centre: there the radius decides, not the centre.
    """
    if isinstance(weights, GatedWeights):
        relative = (weights.gate @ centre).abs() / weights.gate.norm(dim=1)
        index = int(relative.argmin())
        row = weights.gate[index]
        row = row if float(row @ centre) >= 0 else -row  # so that phi is not flat where the gate is largest
        along = weights.up[index].norm() * unit(row)
        gated = GatedWeights(row[None], along[None], weights.down[:, index : index + 1])
        gradients = gated_input_jacobian(centre + radius * unit(row)[None], gated, activation)
        one: MLPWeights = gated
    else:
        index = int((weights.first @ centre + weights.first_bias).abs().argmin())
        row, bias = weights.first[index], weights.first_bias[index : index + 1]
        plain = PlainWeights(row[None], bias, weights.second[:, index : index + 1], weights.second_bias)
        steps = torch.linspace(-radius, radius, 401, dtype=torch.float64)
        gradients = plain_input_jacobian(centre + steps[:, None] * unit(row), plain, activation)
        one = plain
    return float(_norm(gradients).max()) / ball_lipschitz(one, activation, centre, radius, slope)


def _check_mlp(subject: Subject) -> Evidence:
    parts = mlp_parts(subject)
    slope, at = steepest(parts.activation)
    site = subject.site_map.resolve(f"{subject.layer}.{SiteKind.MLP_IN}")
    centre = run_at(subject, (site,))[site][0, -1]
    radius = RADIUS * float(centre.norm())
    bound = ball_lipschitz(parts.weights, parts.activation, centre, radius, slope)
    width = len(centre)

    def inside(count: int, salt: int) -> Tensor:
        drawn = subject.draw(count, width, salt=salt)
        lengths = torch.linspace(0, 1, count, dtype=torch.float64).unsqueeze(-1)
        return centre + radius * lengths * drawn / drawn.norm(dim=-1, keepdim=True)

    first, second = inside(400, 330), inside(400, 331).flip(0)
    quotients = (mlp_alone(subject, first) - mlp_alone(subject, second)).norm(dim=-1) / (first - second).norm(dim=-1)
    jacobian = gated_input_jacobian if isinstance(parts.weights, GatedWeights) else plain_input_jacobian
    points = inside(4, 332)
    local = max(float(_norm(jacobian(point, parts.weights, parts.activation))) for point in points)  # type: ignore[arg-type]
    claim = [
        Measurement("largest difference quotient in the ball over the bound", float(quotients.max()) / bound, high=1.0),
        Measurement("largest norm of the Jacobian in the ball over the bound", local / bound, high=1.0),
        Measurement(
            "one hidden unit of the model's: steepest slope in the ball over the bound",
            _own_unit_ratio(parts.weights, parts.activation, centre, radius, slope),
            low=TIGHT,
            high=1 + ROUNDING,
        ),
        Measurement(
            "a unit in the plane, at a point: slope over the bound",
            _slope_over_bound(parts.activation, slope),
            low=PLANE,
            high=1 + ROUNDING,
            of_subject=False,
        ),
    ]
    controls = [
        Measurement(
            "a unit in the plane: slope over the bound with sup|phi'| understated (1, or 5% less)",
            _slope_over_bound(parts.activation, min(1.0, 0.95 * slope)),
            low=PLANE,
            high=1 + ROUNDING,
            of_subject=False,
        )
    ]
    if parts.is_gated:
        far = centre + 1e6 * radius * unit(subject.draw(width, salt=333))
        step = radius * unit(subject.draw(width, salt=334))
        outside = (mlp_alone(subject, far + step) - mlp_alone(subject, far)).norm() / step.norm()
        controls.append(
            Measurement("difference quotient far outside the ball over its bound", float(outside) / bound, high=1.0)
        )
    return Evidence(
        tuple(claim),
        tuple(controls),
        notes=(
            f"sup|phi'| = {slope:.4f} at {at:.3f}; radius {RADIUS:g} of the input's length; the whole MLP's bound, "
            f"{bound:.3g}, is {bound / local:.3g} times the largest Jacobian found, {local:.3g}",
        ),
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        24,
        GROUP,
        "Lipschitz bound of a norm",
        "|N(x) - N(x')| <= sqrt(n) |x - x'| / sqrt(|x||x'|) (times the largest gain), attained by vectors of one "
        "length; N(c x) = N(x); |W N(x) - W' N(x')| is at most |W| times that, plus sqrt(n) |W - W'|.",
        "Scale invariance and equality: epsilon 0. LayerNorm: centred vectors.",
        Source.OURS,
        _check_norm,
    ),
    Proposition(
        25,
        GROUP,
        "Lipschitz bound of an MLP",
        "On a ball a gated MLP has Lip <= |W_d| (sup|phi'| max|a_u| |W_g| + max|phi(a_g)| |W_u|); without a gate "
        "Lip <= |W_2| sup|phi'| |W_1| everywhere.",
        "sup|phi'| is not 1: SiLU reaches 1.0998, GELU 1.129.",
        Source.OURS,
        _check_mlp,
    ),
)
