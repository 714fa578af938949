"""Baseline: a block that changes its representation most is worth adapting."""

from __future__ import annotations

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.places import place_of
from steerscope.analysis.scoring.scores.score import Needs, Unit, register_score


@register_score(
    label="block change",
    meaning="how unlike the streams are that enter and leave the site's block, at the end of prompts",
    unit=Unit.RATIO,
    needs=Needs.PLACE,
    cost="products of pairs of 64 prompts per block",
    source="arXiv 2602.05988",
    is_baseline=True,
)
def block_change(candidate: Candidate) -> float:
    """`1 - CKA(h_in, h_out)`, linear and centred, over the last tokens before the answers of 64 prompts.

    The paper's importance of a layer; every kind of site of a block has the same. 1 where all prompts end in one token
    and the block is the first: what enters it is then the same everywhere.

    Returns:
        One number, the same with every group left out.
    """
    return place_of(candidate).stats.block_change
