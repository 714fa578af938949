"""How well scores predicted trained outcomes: rank correlations, their uncertainty, regret and the ceiling.

Everything is computed from two tables: scores ``site`` and trained held-out losses ``site seed``. A higher score
should go with a lower loss, so correlations are those of the score with minus the loss. A run that diverged has
an infinite loss: it counts as the worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steerscope.analysis.scoring.intervals import spearman

Array = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """How one score fared.

    Attributes:
        score: Its name.
        spearman: Rank correlation with minus the mean loss over seeds; ``low`` and ``high`` bound its 95%
            interval (bootstrap over sites and seeds).
        kendall: Kendall's tau-b, the same.
        partial: Spearman correlation given depth, with its interval.
        regret: Loss at the site that the score puts first, minus the loss at the best site, in nats.
        regret_share: The same as a part of what the best site gains over no training.
        top3: How many of the three sites that the score puts first are among the three best.
        margin: Spearman minus that of the best plain baseline, with its interval.
    """

    score: str
    spearman: float
    low: float
    high: float
    kendall: float
    partial: float
    partial_low: float
    partial_high: float
    regret: float
    regret_share: float
    top3: int
    margin: float = 0.0
    margin_low: float = 0.0
    margin_high: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Ceiling:
    """What no score can be expected to beat: agreement of the training with itself.

    Attributes:
        spearman: Mean rank correlation between the losses of two seeds (NaN with one seed), with its interval
            (bootstrap over sites).
        partial: The same given depth.
        num_pairs: Pairs of seeds.
    """

    spearman: float
    low: float
    high: float
    partial: float
    num_pairs: int


def _spearman(first: Array, second: Array) -> float:
    """Return Spearman's correlation; 0 where one side is constant (it then orders nothing)."""
    return spearman(first, second) or 0.0


def partial_spearman(first: Array, second: Array, given: Array) -> float:
    """Return Spearman's correlation of two with the linear effect of the ranks of a third taken out of both."""
    xy, xz, yz = _spearman(first, second), _spearman(first, given), _spearman(second, given)
    return float(_partial(np.array(xy), np.array(xz), np.array(yz)))


def _partial(xy: Array, xz: Array, yz: Array) -> Array:
    left = (1 - xz**2) * (1 - yz**2)
    return np.where(left > 1e-9, (xy - xz * yz) / np.sqrt(np.maximum(left, 1e-9)), 0.0)


def _ranks(rows: Array) -> Array:
    """Return the ranks within every row of ``resample site``, centred and of unit length; zero where all are equal."""
    centred = stats.rankdata(rows, axis=1) - (rows.shape[1] + 1) / 2
    size = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(size > 0, size, 1.0)


def _correlations(first: Array, second: Array) -> Array:
    """Return Spearman's correlation of every resample, from two :func:`_ranks`."""
    return np.einsum("rs,rs->r", first, second)


def finite_losses(losses: Array) -> Array:
    """Replace the losses of diverged runs by one above all others, so that they rank last."""
    good = losses[np.isfinite(losses)]
    worst = float(good.max()) + 1.0 if len(good) else 1.0
    return np.where(np.isfinite(losses), losses, worst)


def agreements(
    scores: Mapping[str, Array],
    losses: Array,
    depth: Array,
    *,
    before: float,
    baselines: Sequence[str],
    seed: int,
) -> dict[str, Agreement]:
    """Compare every score with trained losses.

    Args:
        scores: Per name ``site``; higher should be better.
        losses: ``site seed``, held-out, in nats.
        depth: ``site``: the layer.
        before: The loss without any training.
        baselines: Names of the plain baselines among ``scores``; margins are to the best of them.
        seed: Seed of the bootstrap.

    Returns:
        Per score its agreement. Intervals are percentiles of 2,000 resamples of sites and of seeds, the same
        resamples for all scores; the best baseline is that of the whole sample.
    """
    table = finite_losses(losses)
    mean = table.mean(1)
    rng = np.random.default_rng(seed)
    num_sites, num_seeds = table.shape
    resamples = [
        (rng.integers(num_sites, size=num_sites), rng.integers(num_seeds, size=num_seeds)) for _ in range(RESAMPLES)
    ]
    sites = np.stack([i for i, _ in resamples])
    outcome = _ranks(np.stack([-table[np.ix_(i, s)].mean(1) for i, s in resamples]))
    place = _ranks(depth[sites])
    by_place = _correlations(outcome, place)
    drawn: dict[str, Array] = {}
    partial: dict[str, Array] = {}
    for name, score in scores.items():
        ranks = _ranks(score[sites])
        drawn[name] = _correlations(ranks, outcome)
        partial[name] = _partial(drawn[name], _correlations(ranks, place), by_place)
    whole = {name: _spearman(score, -mean) for name, score in scores.items()}
    best = max((name for name in baselines if name in scores), key=lambda name: whole[name], default=None)
    out = {}
    for name, score in scores.items():
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        partial_low, partial_high = np.percentile(partial[name], [2.5, 97.5])
        margin = margin_low = margin_high = 0.0
        if best is not None and name != best:
            margin = whole[name] - whole[best]
            margin_low, margin_high = np.percentile(drawn[name] - drawn[best], [2.5, 97.5])
        chosen = int(np.argmax(score))
        regret = float(mean[chosen] - mean.min())
        tops = set(np.argsort(-score, kind="stable")[:3].tolist()) & set(np.argsort(mean, kind="stable")[:3].tolist())
        out[name] = Agreement(
            score=name,
            spearman=whole[name],
            low=float(low),
            high=float(high),
            kendall=float(np.nan_to_num(stats.kendalltau(score, -mean).statistic)),
            partial=partial_spearman(score, -mean, depth),
            partial_low=float(partial_low),
            partial_high=float(partial_high),
            regret=regret,
            regret_share=regret / max(before - float(mean.min()), 1e-9),
            top3=len(tops),
            margin=margin,
            margin_low=float(margin_low),
            margin_high=float(margin_high),
        )
    return out


def ceiling(losses: Array, depth: Array, *, seed: int) -> Ceiling:
    """Return the mean rank correlation between pairs of training seeds (columns of ``losses``)."""
    table = finite_losses(losses)
    pairs = list(combinations(range(table.shape[1]), 2))
    if not pairs:
        nan = float("nan")
        return Ceiling(nan, nan, nan, nan, 0)

    def mean_over_pairs(i: NDArray[np.int64]) -> float:
        return float(np.mean([_spearman(table[i, a], table[i, b]) for a, b in pairs]))

    rng = np.random.default_rng(seed)
    everyone = np.arange(len(table))
    drawn = [mean_over_pairs(rng.integers(len(table), size=len(table))) for _ in range(RESAMPLES // 4)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    partial = np.mean([partial_spearman(table[:, a], table[:, b], depth) for a, b in pairs])
    return Ceiling(mean_over_pairs(everyone), float(low), float(high), float(partial), len(pairs))
