"""Scores of a site, one file per idea; higher is always better.

``score`` says what a score is and lists all; ``candidate`` is what they are computed from. A new score is one file with
one function, named in :data:`FILES`.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate, Place, is_zero, relative_length
from steerscope.analysis.scoring.scores.score import (
    ALWAYS,
    EXTRA,
    Needs,
    Score,
    Unit,
    all_scores,
    get_score,
    ranking_scores,
    register_score,
    unregister_score,
)

DEFAULT_SCORE = "learnable_share"
# Importing a file registers its scores; tables list them in this order.
FILES = (
    "learnable_share",
    "learnable_share_with_mean",
    "in_sample_share",
    "own_direction",
    "predicted_loss",
    "predicted_loss_bounded",
    "converged_share",
    "reading_gain",
    "learned_at_n",
    "gauss_newton_step",
    "alignment",
    "gradient_capture",
    "gradient_norm",
    "projected_residual_norm",
    "relative_gradient_norm",
    "lens_accuracy",
    "block_change",
    "feature_norm",
    "places",
)
for _file in FILES:
    import_module(f"{__name__}.{_file}")

__all__ = [
    "ALWAYS",
    "DEFAULT_SCORE",
    "EXTRA",
    "Candidate",
    "Needs",
    "Place",
    "Score",
    "Unit",
    "all_scores",
    "compute_score",
    "compute_scores",
    "get_score",
    "ranking_scores",
    "register_score",
    "relative_length",
    "unregister_score",
]


def compute_scores(candidate: Candidate, *needs: Needs) -> dict[str, Tensor]:
    """Return the scores of a candidate ``column``, in float64: those of every ranking, or those of some needs.

    Scores of a place or of a step are left out where there is none. A kernel of zero (an edit that moves no output)
    scores zero.

    Args:
        candidate: An edit at a site, or a set of edits, with its kernel.
        *needs: What the wanted scores are computed from; without any, every score of the ranking.

    Returns:
        One tensor ``(column)`` per score: the whole sample, then one entry per left-out group.
    """
    found: dict[str, Tensor] = {}
    for score in map(get_score, ranking_scores(*needs)):
        if score.needs is Needs.PLACE and candidate.place is None:
            continue
        if score.needs is Needs.STEP and candidate.step is None:
            continue
        found[score.name] = compute_score(candidate, score)
    return found


def compute_score(candidate: Candidate, score: Score) -> Tensor:
    """Return one score of a candidate ``column``, in float64, zero of a kernel of zero.

    Args:
        candidate: An edit at a site, or a set of edits, with its kernel.
        score: The score.

    Returns:
        The whole sample, then one entry per left-out group ``(column)``.
    """
    if score.needs.is_of_kernels and is_zero(candidate.kernel):
        return candidate.zeros()
    value = torch.as_tensor(score.compute(candidate), dtype=torch.float64)
    return value if value.dim() else value.expand(candidate.num_columns)
