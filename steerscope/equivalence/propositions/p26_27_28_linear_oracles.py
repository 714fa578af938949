r"""P26 to P28: the rank of oracles, and what is left of them when they must be linear.

The oracles (P21) of many tokens form a matrix ``token d_model``. A LoRA on the down projection alone makes its rank at
most that of the LoRA, since :math:`\Delta = B A m` (P26). Few directions do not make :math:`\Delta` a linear function
of the state (P27); the best function that is linear and of rank r is reduced-rank regression (P28): with fitted values
:math:`\hat Y = X \hat B` of ordinary least squares and :math:`V_r` their first right singular vectors it is
:math:`\hat B V_r V_r^\top`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from steerscope.equivalence.oracles import oracle_shift, reduced_rank_map
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.runs import (
    RANK,
    as_update,
    base_and_tuned,
    fine_tuning,
    low_rank_change,
    output_mapped,
    post,
    run_at,
    unit,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.subspaces import rank_excess
from steerscope.models.changed_weights import with_update

GROUP = "oracles"

# SVD of a few tokens in float64.
SVD = 1e-12
# P27: with 2e5 samples in 8 dimensions chance alone explains about 8 / 2e5 = 4e-5 of the variance.
CHANCE = 1e-3
# P28: differences of squared errors relative to the total.
REGRESSION = 1e-10


# --- formulas under test that no other file has ---


def outside_columns(rows: Tensor, basis: Tensor) -> float:
    """Return the share (norm) of ``rows`` (token d) outside the columns of ``basis`` (d r). Source: P26.

    Args:
        rows: ``(token, d)``.
        basis: ``(d, r)``, of full rank.

    Returns:
        From 0, all inside, to 1.
    """
    columns = torch.linalg.qr(basis).Q
    return float((rows - rows @ columns @ columns.T).norm() / rows.norm())


def principal_error(rows: Tensor, rank: int) -> Tensor:
    """Return the squared error of projecting ``rows`` (token d) on their first ``rank`` principal directions.

    The directions are eigenvectors of the covariance. Source: P26.

    Args:
        rows: ``(token, d)``; centred here.
        rank: Number of directions.

    Returns:
        A scalar, summed over tokens and channels.
    """
    centred = rows - rows.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -rank:]
    return (centred - centred @ directions @ directions.T).square().sum()


def spectrum_tail(rows: Tensor, rank: int) -> Tensor:
    """Return ``sum_{i > rank} sigma_i^2`` of the centred rows: what Eckart and Young say the error is.

    Args:
        rows: ``(token, d)``; centred here.
        rank: Number of singular values left out.

    Returns:
        A scalar, summed over tokens and channels.
    """
    return torch.linalg.svdvals(rows - rows.mean(0))[rank:].square().sum()


def curved_oracle(states: Tensor, reader: Tensor, writer: Tensor) -> Tensor:
    """Return ``((v . h)^2 - 1) u`` for states (token d): one direction, no linear part. Source: P27.

    Args:
        states: h, ``(token, d)``.
        reader: v, ``(d,)``.
        writer: u, ``(d,)``.

    Returns:
        ``(token, d)``.
    """
    return ((states @ reader).square() - 1).unsqueeze(-1) * writer


def affine_share(states: Tensor, targets: Tensor) -> float:
    """Return R^2 of the best affine map from states (token p) to targets (token q), by the normal equations.

    Args:
        states: ``(token, p)``.
        targets: ``(token, q)``.

    Returns:
        R squared on the tokens of the fit, at most 1.
    """
    x, y = states - states.mean(0), targets - targets.mean(0)
    slopes = torch.linalg.pinv(x.T @ x, hermitian=True) @ (x.T @ y)
    return float(1 - (y - x @ slopes).square().sum() / y.square().sum())


# --- checks ---


def _written(subject: Subject, update: dict[str, Tensor]) -> Tensor:
    """Return what the block's down projection writes, before any norm, ``(token d)``."""
    found: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        found.append(output)
        return output

    with with_update(subject.model, update), output_mapped(subject.block.mlp_write, keep):
        run_at(subject)
    return found[0].reshape(-1, found[0].shape[-1])


def _check_rank(subject: Subject) -> Evidence:
    block = subject.block
    base = _written(subject, {})
    write, read = low_rank_change(subject, block.mlp_write)
    down = oracle_shift(_written(subject, as_update(subject, block.mlp_write, write @ read)), base)
    first = block.mlp_reads[0]
    inner_write, inner_read = low_rank_change(subject, first, salt=1)
    inner = oracle_shift(_written(subject, as_update(subject, first, inner_write @ inner_read)), base)
    ranks = range(1, min(len(inner) - 1, inner.shape[1]))
    total = spectrum_tail(inner, 0)
    gap = max(float((principal_error(inner, k) - spectrum_tail(inner, k)).abs() / total) for k in ranks)
    # Random directions instead of principal ones, measured as the principal ones are.
    centred = inner - inner.mean(0)
    random = torch.linalg.qr(subject.draw(inner.shape[1], 2, salt=5)).Q
    worse = (centred - centred @ random @ random.T).square().sum() - spectrum_tail(inner, 2)
    values = torch.linalg.svdvals(inner)
    return Evidence(
        claim=(
            Measurement("share of the oracle outside the columns of B", outside_columns(down, write), high=SVD),
            Measurement(f"singular value {RANK + 1} over the first", rank_excess(down, RANK), high=SVD),
            Measurement("error of k principal directions minus the spectrum's tail", gap, high=SVD),
        ),
        controls=(
            Measurement(
                f"singular value {RANK + 1} over the first, same rank of update but in the map that reads",
                rank_excess(inner, RANK),
                high=SVD,
            ),
            Measurement("error of 2 random directions minus the tail", float(worse / total), high=SVD),
        ),
        notes=(
            ("read before the norm on what the MLP writes; behind it the oracle is not in the columns of B",)
            if block.mlp_post_norm is not None
            else ()
        ),
        series={
            "spectrum": curve(
                "index", range(1, len(values) + 1), "singular value over the first", (values / values[0]).tolist()
            )
        },
    )


def _check_low_rank_is_not_linear(subject: Subject) -> Evidence:
    states = run_at(subject, (post(subject.layer),))[post(subject.layer)].flatten(0, 1)
    centred = states - states.mean(0)
    # Every state and its mirror image: an even function has then no linear part, however few states there are.
    mirrored = torch.cat([centred, -centred])
    width = mirrored.shape[1]
    reader, writer = subject.draw(width, salt=1), unit(subject.draw(width, salt=2))
    reader = reader / (mirrored @ reader).square().mean().sqrt()
    own = curved_oracle(mirrored, reader, writer)

    sample = subject.draw(200_000, 8, salt=3)  # a population with h ~ N(0, I)
    small_reader, small_writer = unit(subject.draw(8, salt=4)), unit(subject.draw(8, salt=5))
    drawn = curved_oracle(sample, small_reader, small_writer)
    straight = (sample @ small_reader).unsqueeze(-1) * small_writer
    share = affine_share(sample, drawn)
    return Evidence(
        claim=(
            Measurement("second singular value over the first, the subject's states", rank_excess(own, 1), high=SVD),
            Measurement(
                "R^2 of the best affine map, the subject's states and their mirror images",
                affine_share(mirrored, own),
                high=CHANCE,
            ),
            Measurement("R^2 of the best affine map, 200,000 normal states", share, high=CHANCE, of_subject=False),
        ),
        controls=(
            Measurement("R^2 for the oracle (v . h) u", affine_share(sample, straight), high=CHANCE, of_subject=False),
        ),
        published=(
            Measurement("R^2 of the best affine map to an oracle of rank 1", share, low=0.99, of_subject=False),
        ),
    )


def _alternating_error(states: Tensor, targets: Tensor, start: Tensor) -> float:
    """Return the least squared error of ``X C U^T`` found by alternating least squares: shares no formula with RRR."""
    read, inverse = start, torch.linalg.pinv(states)
    error = torch.tensor(0.0)
    for _ in range(400):
        write = torch.linalg.lstsq(states @ read, targets).solution  # rank q
        read = inverse @ targets @ torch.linalg.pinv(write)
        error = (targets - states @ read @ write).square().sum()
    return float(error)


def _check_best_linear(subject: Subject) -> Evidence:
    layer = post(subject.layer)
    base, tuned = base_and_tuned(subject, (subject.layer,), fine_tuning(subject))
    delta = oracle_shift(tuned[layer], base[layer]).flatten(0, 1)
    states = base[layer].flatten(0, 1)
    x, y = states - states.mean(0), delta - delta.mean(0)
    # So few tokens cannot determine d_model slopes: the adapter reads the leading principal coordinates.
    width = max(2, min(x.shape[1], len(x) // 3))
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh[:width].T
    total = float(y.square().sum())

    def error(coefficients: Tensor) -> float:
        return float((y - x @ coefficients).square().sum()) / total

    ranks = range(width + 1)
    best = [error(reduced_rank_map(x, y, rank)) for rank in ranks]
    principal, truncated = [], []
    free = torch.linalg.pinv(x) @ y
    for rank in ranks:
        directions = torch.linalg.svd(y, full_matrices=False).Vh[:rank]
        principal.append(error(free @ directions.T @ directions))  # regress the oracle's principal coordinates
        left, values, right = torch.linalg.svd(free, full_matrices=False)
        truncated.append(error((left[:, :rank] * values[:rank]) @ right[:rank]))
    middle = width // 2
    numeric = _alternating_error(x, y, subject.draw(width, middle, salt=7)) / total
    return Evidence(
        claim=(
            Measurement("largest growth of the error from one rank to the next", _growth(best), high=REGRESSION),
            Measurement(
                "largest excess over regressing the oracle's principal coordinates",
                max(b - p for b, p in zip(best, principal, strict=True)),
                high=REGRESSION,
            ),
            Measurement(
                f"rank {middle}: closed form minus alternating least squares",
                abs(best[middle] - numeric),
                high=REGRESSION,
            ),
        ),
        controls=(
            Measurement(
                f"rank {middle}: truncated coefficients minus alternating least squares",
                abs(truncated[middle] - numeric),
                high=REGRESSION,
            ),
        ),
        notes=(f"{len(x)} tokens; the map reads {width} principal coordinates of the state",),
        series={
            "best linear fit": curve("rank", ranks, "unexplained share of the oracle", best),
            "principal directions": curve("rank", ranks, "unexplained share of the oracle", principal),
        },
    )


def _growth(errors: list[float]) -> float:
    return max(after - before for before, after in pairwise(errors))


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        26,
        GROUP,
        "rank of the oracle",
        "A rank-r LoRA on the down projection makes an oracle B A m at that MLP: in the columns of B, rank at most r; "
        "k principal directions leave exactly the tail of the spectrum. Updates of the maps that read have no such "
        "bound.",
        "Read before any norm on what the MLP writes.",
        Source.OURS,
        _check_rank,
    ),
    Proposition(
        27,
        GROUP,
        "low rank is not linear",
        "The oracle ((v . h)^2 - 1) u has rank 1 and no linear part: its best affine map explains nothing.",
        "States symmetric about their mean (normal, or with their mirror images).",
        Source.OURS,
        _check_low_rank_is_not_linear,
        published="The authors' post finds the spectrum of oracles concentrated; read as: so a linear map of low rank "
        "gives them.",
    ),
    Proposition(
        28,
        GROUP,
        "best linear oracle of a rank",
        "Reduced-rank regression, B_ols V_r V_r^T with V_r from the fitted values, is the best linear map of rank r to "
        "the oracle (Izenman 1975): its error does not grow with r and is at most that of regressing the oracle's "
        "principal coordinates.",
        "Centred data, squared error.",
        Source.LITERATURE,
        _check_best_linear,
    ),
)
