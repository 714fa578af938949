"""The predicted loss decrease of an edit that is short enough for the first order to mean something."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score

# An edit at most so long, relative to what it is added to, is believed: beyond it norms and gates answer with something
# else than their derivative. Chosen in docs/validation_plan_2.md.
LONGEST_EDIT = 0.5


@register_score(
    label="bounded loss decrease",
    meaning="how far the linearised model says the edit lowers the loss of an unseen prompt, if the edit is at most "
    "half as long as what it is added to",
    unit=Unit.NATS,
    cost="shared with the learnable share",
    source="this project, docs/validation_plan_2.md",
)
def predicted_loss_bounded(candidate: Candidate) -> Tensor:
    """`<t r, v> - t^2 v C v / 2`, `t` up to 1 such that the edit moves a typical token by at most half its length."""
    gain, count = candidate.zeros(), candidate.zeros()
    for (found, way), (straight, bent, judged) in zip(candidate.predictions, candidate.loss_terms, strict=True):
        squares = candidate.squares_of_edit(found.residual_weights, way)
        kept = (LONGEST_EDIT / squares.clamp_min(1e-300).sqrt()).clamp_max(1)
        gain, count = gain + kept * straight - kept**2 * bent / 2, count + judged
    return gain / count
