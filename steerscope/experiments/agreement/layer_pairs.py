"""Pairs of sites of one layer whose trained losses differ by more than noise: what depth cannot answer.

A pair counts if its losses differ by at least :data:`LEAST` nats, and by more than :data:`ERRORS` standard errors of
the mean difference over seeds (seeds saw the same batches, so differences are taken seed by seed). From a few seeds the
variance of one pair is near zero by chance in some: it is averaged with the mean variance of all pairs of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steerscope.experiments.agreement.correlations import Array, finite_losses
from steerscope.experiments.agreement.layer_bootstrap import Estimate, interval_half

LEAST = 0.03
ERRORS = 2.0
CHANCE = 0.5


@dataclass(frozen=True)
class LayerPairs:
    """The pairs that count.

    Attributes:
        better: Place of the site with the lower loss, per pair.
        worse: Place of the other one.
        layers: Their layer.
        num_all: Pairs of sites of one layer, with those that noise could explain.
    """

    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    layers: NDArray[np.int64]
    num_all: int

    def __len__(self) -> int:
        return len(self.better)


@dataclass(frozen=True)
class PairsRight:
    """How many of them a score orders right.

    Attributes:
        share: Of the pairs, with its 95% interval; pairs that the score cannot tell apart are half right, so an order
            drawn at random has :data:`CHANCE`. None without any pair.
        num_right: Number of pairs.
        num_pairs: All that count.
        num_layers: Layers that have some.
        over: Share minus that of each fixed baseline on the same pairs, with its interval.
    """

    share: Estimate | None
    num_right: float
    num_pairs: int
    num_layers: int
    over: dict[str, Estimate]


def layer_pairs(losses: Array, layers: NDArray[np.int64]) -> LayerPairs:
    """Return the pairs of sites of one layer that differ by more than noise.

    Args:
        losses: ``site seed``, infinite where a run diverged. From one seed there is no standard error; a pair then
            counts by :data:`LEAST` alone.
        layers: ``site``.

    Returns:
        Indices of the two sites of every pair and their layer, and how many pairs there are in all.
    """
    table = finite_losses(losses)
    first, second = np.triu_indices(len(layers), 1)
    same = layers[first] == layers[second]
    first, second = first[same], second[same]
    differences = table[first] - table[second]
    mean, num_seeds = differences.mean(1), table.shape[1]
    error = np.zeros(len(mean))
    if num_seeds > 1 and len(mean):
        variance = differences.var(1, ddof=1)
        error = np.sqrt((variance + variance.mean()) / 2 / num_seeds)
    counts = (np.abs(mean) >= LEAST) & (np.abs(mean) > ERRORS * error)
    lower = np.where(mean < 0, first, second)[counts]
    higher = np.where(mean < 0, second, first)[counts]
    return LayerPairs(lower, higher, layers[lower], len(mean))


def pairs_right(score: Array, pairs: LayerPairs, fixed: dict[str, Array]) -> PairsRight:
    """Return how many pairs a score orders right.

    Args:
        score: ``site``, higher is better.
        pairs: Those that count.
        fixed: Per baseline ``site``.

    Returns:
        The number of pairs and the share of right ones with its interval.
    """
    right = _right(score, pairs)
    layers = np.unique(pairs.layers)
    over = {}
    for name, other in fixed.items() if len(pairs) else ():
        gain = right - _right(other, pairs)
        error = _clustered_variance(gain, pairs.layers)
        half = math.inf if error is None else interval_half([(error, len(layers) - 1)])
        value = float(gain.mean())
        over[name] = Estimate(value, value - half, value + half).within(-1.0, 1.0)
    return PairsRight(_share(right, pairs) if len(pairs) else None, float(right.sum()), len(pairs), len(layers), over)


def _right(score: Array, pairs: LayerPairs) -> Array:
    return (np.sign(score[pairs.better] - score[pairs.worse]) + 1) / 2


def _share(right: Array, pairs: LayerPairs) -> Estimate:
    """Return a share with Wilson's interval for as many pairs as those of clustered layers are worth.

    Wilson's, because the share can be 1, where a standard error is 0; pairs within a layer share sites, so they are
    worth at most their number, and at least one per layer. Where all are alike, a layer's are taken to be worth as
    many as it has sites in them, less one.
    """
    share, num_layers = float(right.mean()), len(np.unique(pairs.layers))
    variance = _clustered_variance(right, pairs.layers)
    if variance is None:
        return Estimate(share, 0.0, 1.0)
    num_sites = len(np.union1d(pairs.better, pairs.worse))
    worth = share * (1 - share) / variance if variance > 0 else float(num_sites - num_layers)
    worth = min(max(worth, num_layers), len(right))
    t2 = float(stats.t.ppf(0.975, num_layers - 1)) ** 2
    middle = (share + t2 / (2 * worth)) / (1 + t2 / worth)
    half = math.sqrt(t2) / (1 + t2 / worth) * math.sqrt(share * (1 - share) / worth + t2 / (4 * worth**2))
    return Estimate(share, middle - half, middle + half).within(0.0, 1.0)


def _clustered_variance(values: Array, layers: NDArray[np.int64]) -> float | None:
    """Return the variance of a mean whose parts are correlated within layers; None from one layer."""
    names = np.unique(layers)
    if len(names) < 2:
        return None
    sums = np.array([(values[layers == name] - values.mean()).sum() for name in names])
    return float((sums**2).sum()) * len(names) / (len(names) - 1) / len(values) ** 2
