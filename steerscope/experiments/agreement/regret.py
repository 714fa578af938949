"""Regret: what is lost by training only where a score says, against the best site of the table."""

from __future__ import annotations

from math import comb

import numpy as np

from steerscope.experiments.agreement.correlations import Array


def regret_of(score: Array, costs: Array, first: int) -> float:
    """Return what the best of a score's first sites has more than the best of all.

    Sites that share a place are in an order drawn at random; this is the mean over all such orders.

    Args:
        score: ``site``, higher comes first.
        costs: ``site``: what is to be low, such as a loss.
        first: How many sites are trained; at most all.

    Returns:
        A difference in the unit of ``costs``, at least 0.
    """
    surely = score > np.sort(score)[::-1][min(first, len(score)) - 1]
    tied = np.sort(costs[score == np.sort(score)[::-1][min(first, len(score)) - 1]])
    best = costs[surely].min() if surely.any() else np.inf
    left = min(first, len(score)) - int(surely.sum())
    # The lowest of `left` drawn without replacement from the tied ones is the j-th lowest of them with probability
    # C(rest above it, left - 1) / C(all, left).
    chances = np.array([comb(len(tied) - j - 1, left - 1) for j in range(len(tied))]) / comb(len(tied), left)
    return float((chances * np.minimum(tied, best)).sum() - costs.min())
