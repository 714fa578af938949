"""How much of the held-out loss decrease of fine-tuning's gradient step a gradient step of the edit makes."""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="gradient capture",
    meaning="the held-out loss decrease of a unit gradient step of the edit, over fine-tuning's (it depends on the "
    "scale of what is read)",
    unit=Unit.RATIO,
    cost="sums over pairs of prompts",
)
def gradient_capture(candidate: Candidate) -> Tensor:
    """`sum k_s(i, j) / sum k_FT(i, j)`, i in one half, j in the other, kernels along the loss direction."""
    rows, included = candidate.rows, candidate.included
    here, there = candidate.zeros(), candidate.zeros()
    for way in candidate.problem.directions:
        train, test = torch.zeros(2, rows.num_examples, 1, dtype=torch.float64).unbind()
        train[rows.example[way.train]] = 1.0
        test[rows.example[way.test]] = 1.0
        weights = included * train
        here = here + ((candidate.kernel.loss.double() @ weights) * included * test).sum(0)
        there = there + ((candidate.target.loss.double() @ weights) * included * test).sum(0)
    return here / torch.where(there == 0, 1.0, there)
