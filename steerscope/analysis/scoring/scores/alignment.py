"""How alike an edit's kernel and fine-tuning's are, as matrices."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="alignment",
    meaning="how alike the edit's tangent kernel and fine-tuning's are",
    unit=Unit.COSINE,
    cost="two sums over pairs of rows",
    source="Cristianini et al. 2001",
)
def alignment(candidate: Candidate) -> Tensor:
    """`<K_s, K_FT> / (|K_s| |K_FT|)` over all rows, uncentred."""
    included = candidate.included[candidate.rows.example]
    between, own = candidate.kernel.pair_sums(candidate.target, included)
    return between / (own * candidate.target.own_sums(included)).sqrt().clamp_min(1e-300)
