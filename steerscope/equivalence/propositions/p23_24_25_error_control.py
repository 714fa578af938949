r"""P23 to P25: error control, how a distance to the fine-tuned stream at one layer grows into one at the output.

Let the fine-tuned blocks be :math:`F_k` and the steered run make the error :math:`\epsilon_l` at layer l on top of
what it inherits, :math:`h^{st}_l = F_l(h^{st}_{l-1}) + e_l`. Then
:math:`d_l \le \mathrm{Lip}_l\, d_{l-1} + \epsilon_l`, and unrolled (P23)

.. math:: |h^{st}_L - h^{FT}_L| \le \sum_l \epsilon_l \prod_{k > l} \mathrm{Lip}_k .

Norms and norms alone make a block's constant finite: with :math:`N(x) = \sqrt n\, x / |x|` and unit vectors u, u',
:math:`|u - u'|^2 = (|x - x'|^2 - (|x| - |x'|)^2) / (|x||x'|)`, so that (P24)

.. math:: |N(x) - N(x')| \le \sqrt n\, |x - x'| / \sqrt{|x||x'|}

with equality for vectors of one length. The gated MLP multiplies two linear maps of its input and is Lipschitz on
balls only (P25):

.. math:: \mathrm{Lip} \le |W_d|\left(\sup|\varphi'| \max|a_u|\, |W_g| + \max|\varphi(a_g)|\, |W_u|\right).

The authors' post states the aim (small errors per layer, small error at the output) without these forms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steerscope.equivalence.closed_forms import (
    Activation,
    GatedWeights,
    activation_slope,
    gated_input_jacobian,
    plain_input_jacobian,
)
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import MLPWeights, curve, mlp_alone, mlp_parts, norm_parts
from steerscope.equivalence.propositions.runs import (
    block_alone,
    fine_tuning,
    post,
    run_at,
    shortened,
    slope_of,
    unit,
    weights_changed,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.hooks import Edit
from steerscope.sites import SiteKind

GROUP = "error control"

# Errors relative to the stream; beyond 1e-3 curvature shows, below 1e-7 rounding does.
SCALES = (1e-3, 1e-4, 1e-5, 1e-6)
# P23: slope of the output's error against the errors made: 1, as they enter linearly.
SLOPE = (0.95, 1.05)
# P23 at scale 1e-6: the bound is exact to first order, what curvature adds is of relative size 1e-6 times a constant.
BOUND = 1.001
# P24: the bound is attained; only rounding may cross it.
ROUNDING = 1e-12
# P25: the bound is attained to within 10 percent by one hidden unit.
TIGHT = 0.9
# Blocks the error passes through, and rounds of the power method for the norm of each.
BLOCKS_ABOVE = 3
ROUNDS = 12


# --- formulas ---


def propagated_bound(errors: Sequence[float], lipschitz: Sequence[float]) -> float:
    """Return ``sum_l eps_l prod_{k > l} Lip_k``; both per layer, lowest first. Source: P23.

    Args:
        errors: eps, the length of the error made at every layer.
        lipschitz: A Lipschitz constant of every layer's map of the stream.

    Returns:
        A bound on the length of the final error.
    """
    total = 0.0
    for error, constant in zip(errors, lipschitz, strict=True):
        total = constant * total + error
    return total


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
    if is_centred:
        x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, ord=2)


# --- checks ---


def _largest_gain(subject: Subject, layer: int, salt: int) -> tuple[float, Tensor]:
    """Return the spectral norm of a block's Jacobian over the whole sequence, and the direction it stretches most.

    Power method on J^T J: the norm comes from below, and is exactly the stretch of the direction returned.
    """
    function, stream = block_alone(subject, layer)
    pull = torch.func.vjp(function, stream)[1]
    direction = unit(subject.draw(*stream.shape, salt=salt))
    for _ in range(ROUNDS):
        pushed = torch.func.jvp(function, (stream,), (direction,))[1]
        direction = unit(pull(pushed)[0].detach())
    return float(torch.func.jvp(function, (stream,), (direction,))[1].norm()), direction


def _check_propagation(subject: Subject) -> Evidence:
    few = shortened(subject, 4)
    top = len(few.site_map.blocks) - 1
    if top == 0:
        return Evidence(inapplicable="one block has nothing above it that an error could pass through")
    layers = tuple(range(max(0, top - BLOCKS_ABOVE), top + 1))
    end = post(top)
    with weights_changed(few.model, fine_tuning(few, layers)):  # the blocks are the fine-tuned ones throughout
        gains = [_largest_gain(few, layer, salt=300 + layer) for layer in layers[1:]]
        exact = run_at(few, [post(layer) for layer in layers])
        lipschitz = [1.0, *(gain for gain, _ in gains)]
        directions = [unit(few.draw(*exact[end].shape, salt=310 + layer)) for layer in layers]

        def final_error(errors: Sequence[float], along: Sequence[Tensor]) -> float:
            def made(size: float, direction: Tensor) -> Edit:
                return lambda h: size * direction

            edits = {post(k): made(e, v) for k, e, v in zip(layers, errors, along, strict=True) if e}
            return float((run_at(few, (end,), edits=edits)[end] - exact[end]).norm())

        size = float(exact[post(layers[0])].norm())
        at_scale = {scale: [scale * size] * len(layers) for scale in SCALES}
        found = [final_error(at_scale[scale], directions) for scale in SCALES]
        # The worst case for one block: the error just below the last one, along what it stretches most.
        worst = [0.0] * len(layers)
        worst[-2] = SCALES[-1] * size
        worst_error = final_error(worst, [*directions[:-2], gains[-1][1], directions[-1]])
    bounds = [propagated_bound(at_scale[scale], lipschitz) for scale in SCALES]
    unamplified = propagated_bound(worst, [1.0] * len(layers))
    return Evidence(
        claim=(
            Measurement("error at the output over its bound, smallest errors", found[-1] / bounds[-1], high=BOUND),
            Measurement("slope of the error at the output against the errors made", slope_of(SCALES, found), *SLOPE),
            Measurement(
                "worst direction below the last block, over its bound",
                worst_error / propagated_bound(worst, lipschitz),
                low=1 / BOUND,
                high=BOUND,
            ),
        ),
        controls=(
            Measurement(
                "worst direction, over the bound without Lipschitz factors", worst_error / unamplified, high=BOUND
            ),
        ),
        notes=(
            f"errors made at layers {layers[0]} to {top}; norms of the blocks' Jacobians over the sequence: "
            + ", ".join(f"{gain:.3g}" for gain, _ in gains)
            + f" ({ROUNDS} rounds of the power method, from below)",
        ),
        series={
            "measured": curve("error per layer over the stream", SCALES, "error at the output", found),
            "bound": curve("error per layer over the stream", SCALES, "error at the output", bounds),
        },
    )


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
        return drawn - drawn.mean(-1, keepdim=True) if norm_of.is_centred else drawn

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
            ),
            Measurement("largest ratio to the bound, the model's own norm, gain in the bound", real, high=1 + ROUNDING),
            Measurement("relative change of N under N(c x)", float(invariance), high=ROUNDING),
        ),
        controls=(
            Measurement(
                "largest ratio to the bound with the longer vector instead of the geometric mean",
                ratio(first, second, wrong),
                low=1 - 1e-9,
                high=1 + ROUNDING,
            ),
        ),
        notes=(
            f"{'LayerNorm: all vectors centred' if norm_of.is_centred else 'RMSNorm'}, epsilon {norm_of.eps:g}, "
            f"largest gain {float(limit):.3g}",
        ),
    )


def _one_unit_ratio(activation: Activation, slope: float) -> float:
    """Return slope over bound of an MLP with one hidden unit, at the point where phi is steepest.

    ``phi(z_1) z_2`` at a large ``z_2``: its gradient ``(phi' z_2, phi)`` has the bound ``sup|phi'| |z_2| + |phi|``.
    """
    _, at = steepest(activation)
    row = torch.eye(2, dtype=torch.float64)
    weights = GatedWeights(row[:1], row[1:], torch.ones(1, 1, dtype=torch.float64))
    point = torch.tensor([at, 1e6], dtype=torch.float64)
    gradient = gated_input_jacobian(point, weights, activation)
    return float(gradient.norm()) / ball_lipschitz(weights, activation, point, 0.0, slope)


def _check_mlp(subject: Subject) -> Evidence:
    parts = mlp_parts(subject)
    slope, at = steepest(parts.activation)
    site = subject.site_map.resolve(f"{subject.layer}.{SiteKind.MLP_IN}")
    centre = run_at(subject, (site,))[site][0, -1]
    radius = 0.5 * float(centre.norm())
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
            "one hidden unit: slope over the bound",
            _one_unit_ratio(parts.activation, slope),
            low=TIGHT,
            high=1 + ROUNDING,
        ),
    ]
    controls = [
        Measurement(
            "one hidden unit: slope over the bound with sup|phi'| understated (1, or 5% less)",
            _one_unit_ratio(parts.activation, min(1.0, 0.95 * slope)),
            low=TIGHT,
            high=1 + ROUNDING,
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
            f"sup|phi'| = {slope:.4f} at {at:.3f}; radius half the input's length; bound {bound:.3g}, "
            f"largest Jacobian {local:.3g}",
        ),
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        23,
        GROUP,
        "errors propagate with Lipschitz factors",
        "Errors eps_l made at every layer end in |h_L - h_L^FT| <= sum_l eps_l prod_{k>l} Lip_k, linear in their size.",
        "Small errors; Lip_k is the norm of the block's Jacobian over the whole sequence (attention couples tokens).",
        Source.OURS,
        _check_propagation,
    ),
    Proposition(
        24,
        GROUP,
        "Lipschitz bound of a norm",
        "|N(x) - N(x')| <= sqrt(n) |x - x'| / sqrt(|x||x'|) (times the largest gain), attained by vectors of one "
        "length; N(c x) = N(x).",
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
