"""What correlation a perfect score would reach: trained losses have noise, and their mean over seeds has less of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from steerscope.experiments.agreement.correlations import Array, finite_losses, spearman_or_zero
from steerscope.experiments.agreement.layer_bootstrap import LayerBootstrap, without_each_seed


@dataclass(frozen=True)
class Attainable:
    """How well the mean loss over seeds can be foreseen at all.

    Two seeds that agree with r share a part r of their variance, so the mean of S seeds correlates with what every seed
    tends to at sqrt(S r / (1 + (S - 1) r)) (the Spearman-Brown formula): more than r, which is not an upper bound.

    Attributes:
        spearman: The attainable correlation; None from one seed. ``low`` and ``high`` bound its 95% interval.
        two_seeds: Mean rank correlation r between the losses of two seeds.
        num_seeds: Seeds S.
    """

    spearman: float | None
    low: float | None
    high: float | None
    two_seeds: float | None
    num_seeds: int


def attainable_correlation(two_seeds: float, num_seeds: int) -> float:
    """Return the correlation that a perfect score has with the mean of seeds.

    Args:
        two_seeds: Correlation between single seeds; 0 or less means no order that could be foreseen.
        num_seeds: Seeds in the mean.

    Returns:
        A number between 0 and 1.

    Example:
        >>> attainable_correlation(1.0, 3), attainable_correlation(0.0, 3), round(attainable_correlation(0.5, 4), 3)
        (1.0, 0.0, 0.894)
    """
    r = max(two_seeds, 0.0)
    return math.sqrt(num_seeds * r / (1 + (num_seeds - 1) * r))


def attainable(losses: Array, layers: NDArray[np.int64], *, seed: int) -> Attainable:
    """Return what correlation with the mean over seeds is attainable.

    Args:
        losses: ``site seed``: held-out losses, infinite where a run diverged.
        layers: ``site``: the layer.
        seed: Of the bootstrap.

    Returns:
        The correlation with its interval; all ``None`` from one seed.
    """
    table = finite_losses(losses)
    num_seeds = table.shape[1]
    if num_seeds < 2:
        return Attainable(None, None, None, None, num_seeds)
    bootstrap = LayerBootstrap(layers, seed)
    left_out = None
    if num_seeds > 2:
        left_out = np.array([[two_seeds_of(one) for one in own] for own in without_each_seed(table, layers, seed)])
    found = bootstrap.correlation(two_seeds_of(table), drawn_two_seeds(table, bootstrap), left_out)
    value, low, high = (attainable_correlation(r, num_seeds) for r in (found.value, found.low, found.high))
    return Attainable(value, low, high, found.value, num_seeds)


def drawn_two_seeds(table: Array, bootstrap: LayerBootstrap) -> Array:
    """Return the agreement of two seeds in every resample.

    Args:
        table: Losses ``(site seed)``, of at least two seeds.
        bootstrap: The resamples of the sites' layers.

    Returns:
        Mean Spearman correlation over all pairs of seeds ``(resample)``.
    """
    ranks = [bootstrap.ranks(column) for column in table.T]
    return np.mean([bootstrap.correlations(one, other) for one, other in combinations(ranks, 2)], axis=0)


def two_seeds_of(table: Array) -> float:
    """Return the mean Spearman correlation over all pairs of seeds of losses ``(site seed)``."""
    pairs = combinations(table.T, 2)
    return float(np.mean([spearman_or_zero(one, other) for one, other in pairs]))
