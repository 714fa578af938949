"""Spaces spanned by the columns of a matrix, and its rank, with a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

# Directions of B below this share of the largest are no directions.
RANK_CUT = 1e-10


def columns_of(write: Tensor) -> Tensor:
    """Return an orthonormal basis (d k) of the columns of B (d r): k is its rank, 0 for a zero B."""
    left, values, _ = torch.linalg.svd(write, full_matrices=False)
    return left[:, values > RANK_CUT * values.max().clamp_min(1e-300)]


def rank_excess(rows: Tensor, rank: int) -> float:
    """Return the first singular value beyond ``rank``, relative to the largest; 0 for a matrix too small to have it.

    Args:
        rows: ``(row, d)``.
        rank: The rank that they should have at most.

    Returns:
        From 0, rank kept, to 1.
    """
    values = torch.linalg.svdvals(rows)
    return float(values[rank] / values[0]) if len(values) > rank else 0.0
