"""Intervals and rank correlations."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from steerscope.finite import require_finite


def jackknife_interval(replicates: Tensor, highest: float = math.inf) -> tuple[float, float, float]:
    """Return value and 95% interval from a delete-group jackknife.

    Student's t with one degree of freedom less than there are groups.

    Args:
        replicates: Entry 0 is the whole, then each group left out.
        highest: What the quantity cannot exceed (1 for a share): the interval ends there.

    Returns:
        Value, lower end and upper end.
    """
    value, groups = float(replicates[0]), len(replicates) - 1
    deviations = replicates[1:] - replicates[1:].mean()
    error = float(((groups - 1) / groups * deviations.pow(2).sum()).sqrt())
    half = float(stats.t.ppf(0.975, groups - 1)) * error
    return value, value - half, max(value, min(value + half, highest))


def spearman(first: ArrayLike, second: ArrayLike, *, at_least: int = 3) -> float | None:
    """Return Spearman's rank correlation, or ``None`` where there is none to speak of: one side is constant.

    Args:
        first: The values of one side, a tensor or an array.
        second: Those of the other, in the same order.
        at_least: Number of values from which on there is a correlation; two values always have one of 1 or -1.

    Returns:
        A number between -1 and 1, or ``None``.

    Raises:
        InputError: A value is NaN or infinite.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    require_finite("a value to be ranked", torch.from_numpy(one), torch.from_numpy(other))
    if len(one) < at_least or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1])
