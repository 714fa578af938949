"""How far the edit's own regression lowers the loss of unseen prompts, to second order."""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.analysis.scoring.problem import Direction, Predictions
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
    for found, way in candidate.predictions:
        straight, bent, judged = loss_terms(candidate, found, way)
        gain, count = gain + straight - bent / 2, count + judged
    return gain / count


def loss_terms(candidate: Candidate, found: Predictions, way: Direction) -> tuple[Tensor, Tensor, Tensor]:
    """Return, per ``column``, the first and second derivative of the log-likelihood along a prediction, and prompts.

    Args:
        candidate: The edit, with the softmax's Fisher matrices.
        found: What regression with its kernel predicts.
        way: The direction of cross-fitting that the prediction is of.

    Returns:
        Sums over the held-out prompts of ``<r, v>`` and of ``v C v`` in nats, and the number of prompts; ``(column)``
        each.
    """
    rows, curvature = candidate.rows, candidate.curvature
    used, truth = way.test_in, way.residual[1][:, None]
    dense = torch.zeros(rows.num_examples, curvature.shape[1], candidate.num_columns, dtype=torch.float64)
    dense[rows.example[way.test], rows.probe[way.test]] = found.residual * used
    bent = torch.einsum("npc,npq,nqc->c", dense, curvature, dense)
    seen = torch.zeros(rows.num_examples, candidate.num_columns, dtype=torch.float64)
    seen[rows.example[way.test]] = used
    return (found.residual * truth * used).sum(0), bent, seen.sum(0)
