"""Rank correlations of a score with trained losses, where a diverged run is worse than every other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steerscope.analysis.scoring.intervals import spearman

Array = NDArray[np.float64]


def finite_losses(losses: Array) -> Array:
    """Replace the losses of diverged runs by one above all others, so that they rank last."""
    good = losses[np.isfinite(losses)]
    worst = float(good.max()) + 1.0 if len(good) else 1.0
    return np.where(np.isfinite(losses), losses, worst)


def spearman_or_zero(first: Array, second: Array) -> float:
    """Return Spearman's correlation; 0 where one side is constant (it then orders nothing).

    Args:
        first: One value per site.
        second: One value per site, in the same order.

    Returns:
        A number between -1 and 1.

    Example:
        >>> spearman_or_zero(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
        1.0
        >>> spearman_or_zero(np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0, 5.0]))
        0.0
    """
    return spearman(first, second) or 0.0


def partial_spearman(first: Array, second: Array, given: Array) -> float:
    """Return Spearman's correlation of two with the linear effect of the ranks of a third taken out of both.

    Args:
        first: One value per site.
        second: One value per site, in the same order.
        given: The value whose effect is taken out, such as the layer's index.

    Returns:
        A number between -1 and 1; 0 where ``given`` orders the sites as ``first`` or ``second`` does.
    """
    xy, xz, yz = spearman_or_zero(first, second), spearman_or_zero(first, given), spearman_or_zero(second, given)
    return float(partial_of(np.array(xy), np.array(xz), np.array(yz)))


def partial_of(xy: Array, xz: Array, yz: Array) -> Array:
    """Return partial correlations from the three plain ones; 0 where ``z`` determines ``x`` or ``y``.

    Args:
        xy: Correlation of ``x`` and ``y``; any shape.
        xz: Correlation of ``x`` and ``z``, of the same shape.
        yz: Correlation of ``y`` and ``z``, of the same shape.

    Returns:
        Correlations of ``x`` and ``y`` given ``z``, of the same shape.
    """
    left = (1 - xz**2) * (1 - yz**2)
    return np.where(left > 1e-9, (xy - xz * yz) / np.sqrt(np.maximum(left, 1e-9)), 0.0)


def unit_ranks(values: Array) -> Array:
    """Return ranks within ``... site``, centred and of unit length: their product is Spearman's; 0 for constants."""
    centred = stats.rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    return centred / np.where(length > 0, length, np.inf)


def pair_signs(values: Array) -> Array:
    """Return ``... site site``: the sign of every difference of two values ``... site``."""
    return np.sign(values[..., :, None] - values[..., None, :])


def kendall_of(first: Array, second: Array) -> Array:
    """Return Kendall's tau-b; 0 where one side is constant.

    Args:
        first: :func:`pair_signs` ``site site``.
        second: The same ``... site site``, of one or many orders.

    Returns:
        Values between -1 and 1.
    """
    ordered = np.sqrt(np.abs(first).sum() * np.abs(second).sum((-1, -2)))
    found = np.einsum("ij,...ij->...", first, second) / np.where(ordered > 0, ordered, np.inf)
    return np.asarray(found)
