"""Baseline: a large gradient marks a good site."""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="gradient norm",
    meaning="how large the gradient of the loss by the edit is",
    unit=Unit.NUMBER,
    cost="a sum over pairs of prompts",
    source="common practice",
    is_baseline=True,
)
def gradient_norm(candidate: Candidate) -> Tensor:
    """Norm of the gradient of the mean loss over prompts by the edit's parameters."""
    included = candidate.included
    squares = torch.einsum("ec,ec->c", included, candidate.kernel.loss.double() @ included)
    return squares.clamp_min(0).sqrt() / included.sum(0)
