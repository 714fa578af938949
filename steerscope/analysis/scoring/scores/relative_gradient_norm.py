"""Baseline: a gradient that is large beside what it would change marks a good site."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.gradient_norm import gradient_norm
from steerscope.analysis.scoring.scores.places import place_of
from steerscope.analysis.scoring.scores.score import Needs, register_score


@register_score(
    label="relative gradient norm",
    meaning="how large the gradient of the loss by the edit is, over the length of what the edit is added to",
    needs=Needs.PLACE,
    cost="a sum over pairs of prompts",
    source="after the idea of arXiv 2210.11466",
    is_baseline=True,
)
def relative_gradient_norm(candidate: Candidate) -> Tensor:
    """`gradient_norm` over the typical length of what the edit is added to.

    The paper's ratio is that of a weight's gradient to the weight. An edit begins at zero, so that what it is added to
    stands for the weight.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    return gradient_norm(candidate) / max(place_of(candidate).held_length, 1e-300)
