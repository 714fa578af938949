"""The learnable share judged on the prompts it was fitted on: reach rather than learning."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate, r_squared
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="in-sample share",
    meaning="the share fitted on the very prompts it is measured on (optimistic)",
    unit=Unit.SHARE,
    cost="shared with the learnable share",
)
def in_sample_share(candidate: Candidate) -> Tensor:
    """The learnable share with the prediction judged on the half that it was fitted on."""
    return r_squared([(one.update_in_sample, way.update[0], way.train_in) for one, way in candidate.predictions])
