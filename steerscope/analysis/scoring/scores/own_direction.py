"""Does the edit, trained alone, move unseen prompts the right way? No fine-tuning in it."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="own direction",
    meaning="how well the edit's own regression on the loss residual points along the residual of unseen prompts, with "
    "no fine-tuning in it",
    unit=Unit.COSINE,
    cost="shared with the learnable share",
)
def own_direction(candidate: Candidate) -> Tensor:
    """Cosine of `r` on one half and what kernel ridge regression of `r` on the other half predicts there."""
    along, length, size = candidate.zeros(), candidate.zeros(), candidate.zeros()
    for found, way in candidate.predictions:
        truth = way.residual[1][:, None]
        along = along + (found.residual * truth * way.test_in).sum(0)
        length = length + (found.residual**2 * way.test_in).sum(0)
        size = size + (truth**2 * way.test_in).sum(0)
    return along / (length * size).sqrt().clamp_min(1e-300)
