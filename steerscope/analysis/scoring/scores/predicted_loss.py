"""How far the edit's own regression lowers the loss of unseen prompts, to second order."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="predicted loss decrease",
    meaning="how far the linearised model says the edit lowers the loss of an unseen prompt",
    unit=Unit.NATS,
    cost="shared with the learnable share",
)
def predicted_loss(candidate: Candidate) -> Tensor:
    """`<r, v> - v C v / 2` per held-out prompt, `v` what `own_direction` predicts, `C` the softmax's Fisher matrix."""
    gain, count = candidate.zeros(), candidate.zeros()
    for straight, bent, judged in candidate.loss_terms:
        gain, count = gain + straight - bent / 2, count + judged
    return gain / count
