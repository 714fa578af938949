"""The learnable share with the shift that all prompts have in common left in."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate, r_squared
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="share with mean",
    meaning="the learnable share with the shift that all prompts have in common left in",
    unit=Unit.SHARE,
    cost="shared with the learnable share",
)
def learnable_share_with_mean(candidate: Candidate) -> Tensor:
    """The learnable share with the mean of `u` per probe left in, which can hold most of its energy."""
    parts = [(one.update_with_mean, way.update_with_mean[1], way.test_in) for one, way in candidate.predictions]
    return r_squared(parts)
