"""How alike an edit's kernel and fine-tuning's are, as matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="alignment",
    meaning="how alike the edit's tangent kernel and fine-tuning's are",
    unit=Unit.COSINE,
    cost="three sums over pairs of rows",
    source="Cristianini et al. 2001",
)
def alignment(candidate: Candidate) -> Tensor:
    """`<K_s, K_FT> / (|K_s| |K_FT|)` over all rows, uncentred.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    by_row = candidate.included[candidate.rows.example].to(candidate.kernel.probe)

    def over_rows(first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum("rc,rc->c", by_row.double(), ((first * second) @ by_row).double())

    ours, theirs = candidate.kernel.probe, candidate.target.probe
    return over_rows(ours, theirs) / (over_rows(ours, ours) * over_rows(theirs, theirs)).sqrt().clamp_min(1e-300)
