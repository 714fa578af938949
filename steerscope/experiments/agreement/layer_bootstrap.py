"""Intervals over layers: sites of one layer share what makes the layer good, so whole layers are drawn, not sites.

A resample draws as many layers as there are, with replacement, and takes all sites of each. What comes out is a
standard error, from which Student's t with one degree of freedom less than there are layers makes the interval; that
of a correlation is symmetric on Fisher's scale (the inverse hyperbolic tangent). Percentiles of the resamples would be
too narrow with the dozen layers that a small study has. With one site per layer intervals are too wide (99% instead of
95%: sites drawn twice are ties); from two sites per layer on they are what they claim (the tests count).

Training seeds are too few to be drawn. Their noise at single sites is in the variance over layers already; what they do
to many layers at once (all runs of a seed see the same batches) is a variance of its own: that of leaving each seed out
in turn (jackknife), less what it would be if seeds had nothing in common between layers (their order shuffled in each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steerscope.experiments.agreement.correlations import Array, pair_signs

RESAMPLES = 2000
# Tables with the seeds of every layer in an order of its own.
SHUFFLES = 16
# Squared correlations from here to 1 are where Fisher's scale is stretched too far for their error.
NEAR_ONE = 0.25


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> Estimate:
        """Return the estimate with its interval cut to what the quantity can be.

        Args:
            low: The least.
            high: The most.

        Returns:
            The same value.
        """
        return Estimate(self.value, max(self.low, low), min(self.high, high))


class LayerBootstrap:
    """Resamples of layers, the same ones for every statistic, so that differences are paired.

    Attributes:
        weights: ``resample site``: how often each site was drawn.
        num_layers: Different layers.
    """

    def __init__(self, layers: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> None:
        """Draw the resamples.

        Args:
            layers: ``site``: the layer.
            seed: Of the draws.
            resamples: How many.
        """
        names, place = np.unique(layers, return_inverse=True)
        self.num_layers = len(names)
        draws = np.random.default_rng(seed).multinomial(
            self.num_layers, np.full(self.num_layers, 1 / self.num_layers), size=resamples
        )
        self.weights: Array = draws[:, place].astype(np.float64)

    def ranks(self, values: Array) -> Array:
        """Return ranks ``resample site`` of values ``site``, centred and of unit length under the weights.

        Ties have their mean rank; a resample in which all values are equal has ranks of zero.
        """
        _, group = np.unique(values, return_inverse=True)
        sizes = np.zeros((len(self.weights), group.max() + 1))
        for column, own in zip(self.weights.T, group, strict=True):
            sizes[:, own] += column
        rank = (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, group]
        centred = rank - ((self.weights.sum(1) + 1) / 2)[:, None]
        length = np.sqrt((self.weights * centred**2).sum(1, keepdims=True))
        return centred / np.where(length > 1e-9, length, np.inf)

    def correlations(self, first: Array, second: Array) -> Array:
        """Return Spearman's correlation in every resample, from two :meth:`ranks`.

        Args:
            first: Weighted ranks ``(resample site)``.
            second: Weighted ranks of the other quantity ``(resample site)``.

        Returns:
            Correlations ``(resample)``, between -1 and 1.
        """
        return np.clip((self.weights * first * second).sum(1), -1, 1)

    def kendall(self, first: Array, second: Array) -> Array:
        """Return Kendall's tau-b in every resample, from values ``site``.

        Args:
            first: One value per site.
            second: One value per site, in the same order.

        Returns:
            Correlations ``(resample)``, between -1 and 1; 0 where one side ties all sites.
        """
        one, other = pair_signs(first), pair_signs(second)

        def pairs(signs: Array) -> Array:
            return np.einsum("rs,rs->r", self.weights @ signs, self.weights)

        ordered = np.sqrt(pairs(np.abs(one)) * pairs(np.abs(other)))
        return pairs(one * other) / np.where(ordered > 0, ordered, np.inf)

    def correlation(self, value: float, drawn: Array, left_out: Array | None = None) -> Estimate:
        """Return a correlation with its interval.

        Args:
            value: From all sites and seeds.
            drawn: Per resample.
            left_out: ``1 + shuffle, seed``: with each training seed left out (:func:`without_each_seed`); without it
                the seeds are taken for fixed.

        Returns:
            The correlation with an interval that stays between -1 and 1.
        """
        half = self.number(value, drawn, left_out).high - value
        # d artanh(r) = dr / (1 - r^2), which means nothing nearer to 1 than the error of r.
        near = max(1 - value**2, min(half, NEAR_ONE), 1e-6)
        half, middle = half / near, math.atanh(math.copysign(math.sqrt(1 - near), value))
        return Estimate(value, min(math.tanh(middle - half), value), max(math.tanh(middle + half), value))

    def number(self, value: float, drawn: Array, left_out: Array | None = None) -> Estimate:
        """Return a number, such as the difference of two correlations, with its interval; see :meth:`correlation`.

        From one layer there is none: it is all numbers.

        Args:
            value: The number on the whole table.
            drawn: The number in every resample ``(resample)``.
            left_out: The number with each training seed left out ``(1 + shuffle, seed)``, see
                :func:`without_each_seed`; without it the seeds are taken for fixed.

        Returns:
            The number with the ends of its 95 % interval, infinite where there is only one layer.
        """
        if self.num_layers < 2:
            return Estimate(value, -math.inf, math.inf)
        parts = [(float(np.var(drawn)) * self.num_layers / (self.num_layers - 1), self.num_layers - 1)]
        if left_out is not None:
            num = left_out.shape[1]
            jackknife = left_out.var(axis=1) * (num - 1)
            parts.append((max(float(jackknife[0] - jackknife[1:].mean()), 0.0), num - 1))
        half = interval_half(parts)
        return Estimate(value, value - half, value + half)


def mean_of(values: Sequence[float] | Array) -> Estimate:
    """Return the mean of two or more independent numbers with Student's interval."""
    mean, num = float(np.mean(values)), len(values)
    half = interval_half([(float(np.var(values, ddof=1)) / num, num - 1)])
    return Estimate(mean, mean - half, mean + half)


def interval_half(parts: Sequence[tuple[float, float]]) -> float:
    """Return half a 95% interval from independent variances, each with its degrees of freedom (Satterthwaite)."""
    total = sum(variance for variance, _ in parts)
    if total <= 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / own for variance, own in parts)
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)


def without_each_seed(losses: Array, layers: NDArray[np.int64], seed: int) -> list[list[Array]]:
    """Return tables with each training seed left out: of the losses, then of shuffled ones.

    Args:
        losses: ``site seed``, at least two seeds.
        layers: ``site``: in shuffled tables each layer has the order of seeds that it draws.
        seed: Of the shuffles.

    Returns:
        ``1 + shuffle`` lists of one table ``site seed`` per seed, without that seed.
    """
    rng, num = np.random.default_rng(seed), losses.shape[1]
    names, place = np.unique(layers, return_inverse=True)
    tables = [losses]
    for _ in range(SHUFFLES):
        order = np.stack([rng.permutation(num) for _ in names])[place]
        tables.append(np.take_along_axis(losses, order, axis=1))
    return [[np.delete(table, one, axis=1) for one in range(num)] for table in tables]
