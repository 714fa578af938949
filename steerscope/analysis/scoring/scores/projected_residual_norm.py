"""Baseline: how much of the loss residual lies in what an edit can do, on the prompts it is fitted on."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Unit, register_score


@register_score(
    label="projected residual norm",
    meaning="how large the part of the loss residual is that the edit can make on the prompts it is fitted on",
    unit=Unit.RATIO,
    cost="shared with the learnable share",
    source="after the idea of arXiv 2602.04019",
    is_baseline=True,
)
def projected_residual_norm(candidate: Candidate) -> Tensor:
    """`sqrt(r H r / r r)`, `H = K_s (K_s + ridge)^-1`: the projection of `r` on what the edit can do, in-sample.

    The paper's layerwise projected residual is defined for squared loss and linear adapters, as the projection of the
    residual on an adapter's tangent space. From a few hundred prompts that space is everything, so that the projection
    is taken with the ridge of the ranking; both halves are pooled.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    along, size = candidate.zeros(), candidate.zeros()
    for found, way in candidate.predictions:
        truth = way.residual[0][:, None] * way.train_in
        # The fit of a kernel regression is the target less the ridge times the dual weights.
        along = along + (truth * (truth - candidate.problem.ridge * found.residual_weights)).sum(0)
        size = size + (truth**2).sum(0)
    return (along / size.clamp_min(1e-300)).clamp_min(0).sqrt()
