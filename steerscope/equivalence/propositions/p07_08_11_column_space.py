r"""P7, P8, P11: what an edit before the MLP can reach, and when the column-space condition says anything.

To first order an edit ``D`` of the MLP's input moves its output by ``A D`` with ``A = W_d J`` (P6). The outputs in
reach are col(A), inside col(W_d). If W_d has rank below d that is an obstruction (P7). Language models have
``d_ff >= d`` and W_d of full row rank; then A is invertible for almost every token and *any* target is reached,
at a price: ``|D| <= |t| / s_min(A)`` (P8), and through a norm and beside the skip connection almost as well (P9, P10).
So the condition published as sufficient, which asks for gate and up pre-activations one by one, asks for far more
than is needed (P11).

What an edit does is taken from the model's own MLP (its forward derivative), never from A alone: a wrong A finds edits
that the model does not answer as A says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import jvp

from steerscope.equivalence.closed_forms import GatedWeights, PlainWeights, activation_slope
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.mlp_expansion import at_last_token, input_jacobian, weight_shift, without_down
from steerscope.equivalence.propositions.parts import (
    MLPParts,
    MLPWeights,
    as_parameters,
    drawn_update,
    mlp_alone,
    moved,
    orthonormal_rows,
    relative_error,
    with_down,
)
from steerscope.equivalence.propositions.subject import Subject

GROUP = "column space"

# Two ways to the same least-squares residual, relative to the target; both lose digits with cond(A).
RESIDUAL = 1e-10
# P7: two distances of a target of length 1.
DISTANCE = 1e-12
# A component that is zero by construction, up to rounding of the projection.
UNREACHED = 1e-12
# The bound |D| <= |t| / s_min(A), up to rounding of the smallest singular value.
BOUND = 1 + 1e-6
# Singular values below this share of the largest count as zero: rounding leaves fewer.
ZERO = 1e-12
# Relative size of a fine-tuning update in P8 and P11.
UPDATE = 1e-2
# "Not satisfied": the misfit of an overdetermined system, relative to its right-hand side.
MISFIT = 1e-2
# Of a random right-hand side k equations for d unknowns leave the share 1 - d / k of its energy on average, spread as a
# Beta distribution; this many standard deviations of it are allowed.
DEVIATIONS = 4.0
# Least response over s_min(A): two routes to a singular value that is up to 1e-6 of the largest.
LEAST = 1e-6


# --- formulas under test ---


def best_shift(matrix: Tensor, target: Tensor) -> Tensor:
    """Return the shift of least squares, then of least length, with ``matrix @ shift`` nearest to ``target``.

    Args:
        matrix: ``(m, n)``.
        target: ``(m,)``.

    Returns:
        ``(n,)``.
    """
    # A complete orthogonal factorisation: finds the rank by pivoting, far cheaper than singular values.
    return torch.linalg.lstsq(matrix, target[:, None], driver="gelsy").solution[:, 0]


def reduced_rank(subject: Subject, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``weight`` (m, n) projected onto ``rank`` random directions of its outputs, and those (m, rank).

    Args:
        subject: Seeds the draw.
        weight: ``(m, n)``.
        rank: Number of directions.

    Returns:
        The projected weight ``(m, n)`` and an orthonormal basis ``(m, rank)`` of its columns.
    """
    basis = orthonormal_rows(subject, rank, weight.shape[0], salt=205).T
    return basis @ (basis.T @ weight), basis


def distance_to_columns(matrix: Tensor, target: Tensor) -> Tensor:
    """Return how far ``target`` (m,) is from the column space of ``matrix`` (m, n), by its singular vectors.

    Args:
        matrix: ``(m, n)``; singular values below :data:`ZERO` of the largest count as zero.
        target: ``(m,)``.

    Returns:
        A scalar in the units of ``target``.
    """
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    basis = left[:, values > ZERO * values[0]]
    return (target - basis @ (basis.T @ target)).norm()


def stacked_condition(weights: MLPWeights, update: MLPWeights, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrix and right-hand side of the published condition (P11) at one token ``z``.

    ``W_g D = DW_g z`` and ``W_u D = DW_u z``: ``2 d_ff`` equations for d unknowns. Without a gate the ``d_ff``
    equations ``W_1 D = DW_1 z + Db_1``.

    Args:
        weights: The MLP's weights.
        update: Their change.
        z: What the MLP receives at one token, ``(d,)``.

    Returns:
        The matrix ``(2 d_ff, d)`` and its right-hand side ``(2 d_ff,)``; without a gate ``d_ff`` rows.
    """
    if isinstance(weights, GatedWeights) and isinstance(update, GatedWeights):
        return torch.cat((weights.gate, weights.up)), torch.cat((update.gate @ z, update.up @ z))
    assert isinstance(weights, PlainWeights)
    assert isinstance(update, PlainWeights)
    return weights.first, update.first @ z + update.first_bias


def rank_one_patch(weights: MLPWeights, z: Tensor, z_wanted: Tensor) -> MLPWeights:
    """Return the update after which the MLP's first maps treat ``z`` as ``z_wanted``: ``DW = W (z' - z) z^T / |z|^2``.

    The map that writes and biases stay. Source: Goldwaser et al., arXiv 2511.17864.

    Args:
        weights: The MLP's weights.
        z: What the MLP receives at one token, ``(d,)``.
        z_wanted: What it is to be treated as, ``(d,)``.

    Returns:
        The update, zero for the map that writes and for biases.
    """
    along = torch.outer(z_wanted - z, z) / z.square().sum()
    if isinstance(weights, GatedWeights):
        return GatedWeights(weights.gate @ along, weights.up @ along, torch.zeros_like(weights.down))
    zero = torch.zeros_like
    return PlainWeights(
        weights.first @ along, zero(weights.first_bias), zero(weights.second), zero(weights.second_bias)
    )


# --- checks ---


def _with_down(parts: MLPParts, down: Tensor) -> MLPParts:
    return replace(parts, weights=with_down(parts.weights, down))


def _answered(subject: Subject, z: Tensor, shift: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return what the model's own MLP makes of a small edit of ``z``: its derivative along ``shift``."""
    return jvp(lambda x: mlp_alone(subject, x, weights), (z,), (shift,))[1]


def _misfit(matrix: Tensor, shift: Tensor, target: Tensor) -> float:
    return float((matrix @ shift - target).norm() / target.norm())


def check_column_condition(subject: Subject) -> Evidence:
    """P7: with W_d of lower rank, the residual of the best edit is the distance to the column space."""
    parts, z = at_last_token(subject)
    d = parts.down.shape[0]
    low, basis = reduced_rank(subject, parts.down, min(parts.down.shape) // 2)
    target = subject.draw(d, salt=200)
    target = target / target.norm()
    deficient = input_jacobian(z, _with_down(parts, low))
    shift = best_shift(deficient, target)
    answered = _answered(subject, z, shift, as_parameters(subject, _with_down(parts, low).weights))
    residual = (answered - target).norm()
    to_reach, to_down = distance_to_columns(deficient, target), distance_to_columns(basis, target)
    full = input_jacobian(z, parts)
    residual_full = (_answered(subject, z, best_shift(full, target)) - target).norm()

    # No first order here: however large the edit, the output moves inside col(W_d) alone.
    push = subject.draw(d, salt=201) * z.square().mean().sqrt()

    def unreached(down: Tensor) -> float:
        weights = as_parameters(subject, _with_down(parts, down).weights)
        change = mlp_alone(subject, z + push, weights) - mlp_alone(subject, z, weights)
        return float((change - basis @ (basis.T @ change)).norm() / change.norm())

    return Evidence(
        claim=(
            Measurement(
                "residual of the best edit in the model against the distance to col(A), relative",
                float((residual - to_reach).abs()),
                high=DISTANCE,
            ),
            Measurement("distance to col(W_d) minus residual", float(to_down - residual), high=DISTANCE),
            Measurement("share of a finite edit's effect outside col(W_d)", unreached(low), high=UNREACHED),
        ),
        controls=(
            Measurement(
                "distance to the reduced col(W_d) minus residual of the full W_d",
                float(to_down - residual_full),
                high=DISTANCE,
            ),
            Measurement("share outside the reduced col(W_d) with the full W_d", unreached(parts.down), high=UNREACHED),
        ),
        limit="for W_d of rank below d, which this model's is not (P8)" if not _singular(full, parts, z) else "",
        notes=(f"residual {float(residual):.3f} of a random target of length 1, W_d cut to half its rank",),
    )


def check_vacuity(subject: Subject) -> Evidence:
    """P8: for weights as they are, A is invertible and the condition excludes nothing."""
    parts, z = at_last_token(subject)
    d, d_ff = parts.down.shape
    jacobian = input_jacobian(z, parts)
    if reason := _singular(jacobian, parts, z):
        return Evidence(inapplicable=f"{reason}: the condition excludes something here, see P7")
    _, singular, right = torch.linalg.svd(jacobian)
    # The target: what fine-tuning of the down projection adds, the term that steering before the MLP is said to miss.
    update = drawn_update(subject, parts, UPDATE, salt=210)
    target = weight_shift(z, parts, update) - weight_shift(z, parts, without_down(update))
    shift = _refined_shift(jacobian, target)
    low = input_jacobian(z, _with_down(parts, reduced_rank(subject, parts.down, d // 2)[0]))
    return Evidence(
        claim=(
            Measurement(
                "residual of the best edit in the model, relative",
                relative_error(_answered(subject, z, shift), target),
                high=RESIDUAL,
            ),
            Measurement("|D| s_min(A) / |t|", float(shift.norm() * singular[-1] / target.norm()), high=BOUND),
            Measurement(
                "the model's answer to the direction of s_min(A), over s_min(A)",
                float(_answered(subject, z, right[-1]).norm() / singular[-1]),
                low=1 - LEAST,
                high=1 + LEAST,
            ),
        ),
        controls=(
            Measurement(
                "residual with W_d of half the rank", _misfit(low, best_shift(low, target), target), high=RESIDUAL
            ),
        ),
        limit="one token at a time, with an edit of its own",
        notes=(
            f"A is invertible (d_ff = {d_ff} >= d = {d}): the condition of P7 excludes nothing; "
            f"cond(A) = {float(singular[0] / singular[-1]):.1e}; to imitate a {UPDATE:.0%} change of W_d an edit of "
            f"|D| = {float(shift.norm() / z.norm()):.2g} |z| is needed",
        ),
    )


def _refined_shift(matrix: Tensor, target: Tensor) -> Tensor:
    shift = best_shift(matrix, target)
    return shift + best_shift(matrix, target - matrix @ shift)  # one refinement: cond(A) is large in real models


def _singular(jacobian: Tensor, parts: MLPParts, z: Tensor) -> str:
    """Say why A is not invertible at this token; "" if it is."""
    d, d_ff = parts.down.shape
    if d_ff < d:
        return f"the hidden layer is narrower ({d_ff}) than the stream ({d})"
    active = int(activation_slope(parts.activation, parts.activated(z)).ne(0).sum())
    if active < d:  # ReLU and its like: an inactive unit passes nothing on
        return f"{active} of {d_ff} hidden units are active at this token, fewer than d = {d}, so A is singular"
    rank = int(torch.linalg.matrix_rank(jacobian, rtol=ZERO))
    return f"A has rank {rank} at this token, below d = {d}" if rank < d else ""


def check_published_condition(subject: Subject) -> Evidence:
    """P11: the published condition is violated where the one that is needed holds."""
    parts, z = at_last_token(subject)
    d, d_ff = parts.down.shape
    jacobian = input_jacobian(z, parts)
    if reason := _singular(jacobian, parts, z):
        return Evidence(inapplicable=reason)
    if not parts.is_gated and d_ff == d:
        return Evidence(inapplicable=f"{d_ff} equations for {d} unknowns: here the published condition asks no more")
    update = without_down(drawn_update(subject, parts, UPDATE, salt=240))
    target = weight_shift(z, parts, update)
    needed = _refined_shift(jacobian, target)
    matrix, wanted = stacked_condition(parts.weights, update, z)
    asked = best_shift(matrix, wanted)
    share, allowed = _left_of_random(2 * d_ff if parts.is_gated else d_ff, d)
    # Rank-one patches satisfy the published condition with D = z' - z.
    z_wanted = z + 0.1 * subject.draw(d, salt=245) * z.square().mean().sqrt()
    patch = rank_one_patch(parts.weights, z, z_wanted)
    patch_matrix, patch_wanted = stacked_condition(parts.weights, patch, z)
    patch_target = weight_shift(z, parts, patch)
    patched = mlp_alone(subject, z, as_parameters(subject, moved(parts.weights, patch)))
    steered = mlp_alone(subject, z_wanted)
    claim = [
        Measurement(
            f"published condition of a random update: energy left over {share:.3g}, the mean of random equations",
            _misfit(matrix, asked, wanted) ** 2 / share,
            low=1 - allowed / share,
            high=1 + allowed / share,
        ),
        Measurement(
            "misfit of A D = t in the model, relative",
            relative_error(_answered(subject, z, needed), target),
            high=RESIDUAL,
        ),
        Measurement(
            "rank-one patch: misfit of the published condition",
            _misfit(patch_matrix, z_wanted - z, patch_wanted),
            high=RESIDUAL,
        ),
        Measurement("rank-one patch: misfit of A D = t", _misfit(jacobian, z_wanted - z, patch_target), high=RESIDUAL),
        Measurement(
            "rank-one patch: MLP against the MLP on z', relative", relative_error(patched, steered), high=RESIDUAL
        ),
    ]
    # Both halves of the condition are needed: a patch of one map alone satisfies one half and is no edit.
    for half, incomplete in _half_patches(patch).items():
        half_matrix, half_wanted = stacked_condition(parts.weights, incomplete, z)
        left = _misfit(half_matrix, best_shift(half_matrix, half_wanted), half_wanted)
        name = f"{half} map patched alone: misfit of the published condition"
        claim.append(Measurement(name, left, low=MISFIT))
    return Evidence(
        claim=tuple(claim),
        controls=(
            Measurement(
                "misfit of A D = t with the published condition's best D",
                _misfit(jacobian, asked, target),
                high=RESIDUAL,
            ),
            Measurement(
                "random update: MLP against the MLP on z + D",
                _misfit_of_random(subject, parts, update, z, asked),
                high=RESIDUAL,
            ),
        ),
        notes=(f"{matrix.shape[0]} equations for {d} unknowns are asked, {d} equations are needed",),
    )


def _left_of_random(equations: int, unknowns: int) -> tuple[float, float]:
    """Return the mean share of energy that random equations leave over, and how far from it a draw may be."""
    a, b = (equations - unknowns) / 2, unknowns / 2
    deviation = (a * b / ((a + b) ** 2 * (a + b + 1))) ** 0.5
    return a / (a + b), DEVIATIONS * deviation


def _half_patches(patch: MLPWeights) -> dict[str, MLPWeights]:
    """Return the patch of the gate map alone and of the up map alone; none without a gate."""
    if not isinstance(patch, GatedWeights):
        return {}
    none = torch.zeros_like(patch.gate)
    return {"gate": patch._replace(up=none), "up": patch._replace(gate=none)}


def _misfit_of_random(subject: Subject, parts: MLPParts, update: MLPWeights, z: Tensor, shift: Tensor) -> float:
    tuned = mlp_alone(subject, z, as_parameters(subject, moved(parts.weights, update)))
    before = mlp_alone(subject, z)
    return relative_error(mlp_alone(subject, z + shift) - before, tuned - before)


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        7,
        GROUP,
        "column-space condition",
        "The best edit of the MLP's input misses a target t by dist(t, col(A)) >= dist(t, col(W_d)).",
        "first order for col(A), none for col(W_d); W_d cut to half its rank, as no language model has it (P8)",
        Source.POST,
        check_column_condition,
    ),
    Proposition(
        8,
        GROUP,
        "in language models the column-space condition excludes nothing",
        "With d_ff >= d and W_d of full row rank A is invertible: residual 0 for any t, |D| <= |t| / s_min(A).",
        "first order, one token, an edit of its own for every token",
        Source.OURS,
        check_vacuity,
    ),
    Proposition(
        11,
        GROUP,
        "the sufficient condition is far from necessary",
        "W_g D = DW_g z, W_u D = DW_u z (2 d_ff equations) fails where A D = t (d equations) holds.",
        "first order, one token; both hold for rank-one patches",
        Source.OURS,
        check_published_condition,
    ),
)
