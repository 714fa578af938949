"""How alike an edit's kernel and fine-tuning's are, as matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score

_ROWS = 96


@register_score(
    label="alignment",
    meaning="how alike the edit's tangent kernel and fine-tuning's are",
    unit=Unit.COSINE,
    cost="three sums over pairs of rows",
    source="Cristianini et al. 2001",
)
def alignment(candidate: Candidate) -> Tensor:
    """`<K_s, K_FT> / (|K_s| |K_FT|)` over all rows, uncentred."""
    by_row = candidate.included[candidate.rows.example].to(candidate.kernel.probe)

    ours, theirs = candidate.kernel.probe, candidate.target.probe
    sums = torch.zeros(3, candidate.num_columns, dtype=torch.float64)
    # A few rows at a time, so that products stay in the cache, and those up to the diagonal: what is beyond is alike.
    for start in range(0, len(ours), _ROWS):
        rows = slice(start, min(start + _ROWS, len(ours)))
        counted = torch.cat([2 * by_row[:start], by_row[rows]])
        one, other = ours[rows, : rows.stop], theirs[rows, : rows.stop]
        for place, (first, second) in enumerate([(one, other), (one, one), (other, other)]):
            sums[place] += (by_row[rows] * ((first * second) @ counted)).double().sum(0)
    between, own, target = sums
    return between / (own * target).sqrt().clamp_min(1e-300)
