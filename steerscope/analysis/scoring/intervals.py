"""Intervals and rank correlations."""

from __future__ import annotations

from scipy import stats
from torch import Tensor

from steerscope.finite import require_finite


def jackknife_interval(replicates: Tensor) -> tuple[float, float, float]:
    """Return value and 95% interval from a delete-group jackknife (entry 0 is the whole, then each left out).

    Student's t with one degree of freedom less than there are groups.
    """
    value, groups = float(replicates[0]), len(replicates) - 1
    deviations = replicates[1:] - replicates[1:].mean()
    error = float(((groups - 1) / groups * deviations.pow(2).sum()).sqrt())
    half = float(stats.t.ppf(0.975, groups - 1)) * error
    return value, value - half, value + half


def spearman(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation, 0 where one side is constant.

    Raises:
        InputError: A value is NaN or infinite.
    """
    require_finite("a value to be ranked", first, second)
    if len(first) < 2 or bool((first == first[0]).all()) or bool((second == second[0]).all()):
        return 0.0
    return float(stats.spearmanr(first.numpy(), second.numpy()).statistic)
