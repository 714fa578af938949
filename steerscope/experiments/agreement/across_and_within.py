"""One number that a score has to earn across layers and within them: J = (rho + W) / 2.

``rho`` is Spearman's correlation with minus the mean loss, ``W = 2 right - 1`` with ``right`` the share of pairs of
sites of one layer in the right order (:mod:`.layer_pairs`; 0 without any pair).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerscope.experiments.agreement.correlations import Array, finite_losses, spearman_or_zero, unit_ranks
from steerscope.experiments.agreement.layer_bootstrap import Estimate, LayerBootstrap, without_each_seed
from steerscope.experiments.agreement.layer_pairs import LayerPairs


@dataclass(frozen=True)
class AcrossAndWithin:
    """J of a score.

    Attributes:
        value: With its 95% interval.
        margins: J minus that of every baseline fixed in advance, with its interval.
    """

    value: Estimate
    margins: dict[str, Estimate]


def across_and_within(
    scores: Mapping[str, Array],
    losses: Array,
    layers: NDArray[np.int64],
    pairs: LayerPairs,
    *,
    fixed: Sequence[str],
    seed: int,
) -> dict[str, AcrossAndWithin]:
    """Return J of every score, from the resamples of layers that :func:`agreements` draws with the same seed.

    Args:
        scores: Per name ``site``; higher should be better.
        losses: ``site seed``, nats.
        layers: ``site``.
        pairs: Those that count.
        fixed: Names of baselines among the scores.
        seed: Of the bootstrap.

    Returns:
        By name of the score, J with its interval and its margins over the baselines fixed in advance.
    """
    table = finite_losses(losses)
    mean = table.mean(1)
    bootstrap = LayerBootstrap(layers, seed)
    outcome, weights = bootstrap.ranks(-mean), bootstrap.weights[:, pairs.better]
    counted = weights.sum(1)
    without = np.array([])
    if table.shape[1] > 1:
        without = np.array([[-one.mean(1) for one in own] for own in without_each_seed(table, layers, seed)])

    def right(score: Array) -> Array:
        return np.sign(score[pairs.better] - score[pairs.worse])

    whole, drawn, left_out = {}, {}, {}
    for name, score in scores.items():
        within = float(right(score).mean()) if len(pairs) else 0.0
        whole[name] = (spearman_or_zero(score, -mean) + within) / 2
        resampled = weights @ right(score) / np.where(counted > 0, counted, np.inf)
        drawn[name] = (bootstrap.correlations(bootstrap.ranks(score), outcome) + resampled) / 2
        if without.size:
            signs = np.sign(without[..., pairs.better] - without[..., pairs.worse]) * right(score)
            own = signs.mean(-1) if len(pairs) else 0.0
            left_out[name] = (unit_ranks(without) @ unit_ranks(score) + own) / 2

    def estimate(value: float, resampled: Array, seeds: Array | None, most: float) -> Estimate:
        return bootstrap.number(value, resampled, seeds).within(-most, most)

    def margin(name: str, other: str) -> Estimate:
        seeds = left_out[name] - left_out[other] if left_out else None
        return estimate(whole[name] - whole[other], drawn[name] - drawn[other], seeds, 2.0)

    return {
        name: AcrossAndWithin(
            estimate(whole[name], drawn[name], left_out.get(name), 1.0),
            {other: margin(name, other) for other in fixed if other != name},
        )
        for name in scores
    }
