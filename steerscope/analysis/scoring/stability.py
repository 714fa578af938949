"""How far to believe the order: rankings from disjoint halves, and shares from fewer prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from steerscope.analysis.results import Stability
from steerscope.analysis.scoring.intervals import spearman
from steerscope.analysis.scoring.joint import JointScores
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores import DEFAULT_SCORE
from steerscope.analysis.scoring.scores.learnable_share import quick_share
from steerscope.process import side_by_side
from steerscope.sites import Site

THRESHOLD = 0.5
"""Below this agreement of two halves the report says it cannot tell sites apart.

By the Spearman-Brown formula halves that agree at 0.5 make a whole with reliability 2/3."""


def stability_of_halves(
    kernels: Mapping[Site, Tensor],
    target: Kernel,
    rows: Rows,
    halves: tuple[range, range],
    ridge: float,
    joint: JointScores | None = None,
) -> Stability:
    """Rank the sites twice, on prompts of the one half only and of the other only, and compare.

    Each half is split once more to learn and judge, so these rankings stand on half as many prompts as the
    ranking reported: their agreement is a lower estimate of its own.

    Args:
        kernels: Unit-scale kernels ``row row`` of the linear edits.
        target: Fine-tuning's kernel.
        rows: What the kernels' rows are.
        halves: The examples of the two halves.
        ridge: Ridge of the regressions.
        joint: The ranking's score; without it, the learnable share.

    Returns:
        How well the rankings of the two halves agree, over all sites and among the best.

    Cost: per site and half, that of the score on half the prompts.
    """
    scores = []
    for half in halves:
        middle = half.start + len(half) // 2
        quarters = (range(half.start, middle), range(middle, half.stop))
        problem = Problem.of(target, rows, quarters, num_groups=0, ridge=ridge)
        score = joint.on(problem) if joint else lambda site, problem=problem: quick_share(kernels[site], problem)
        scores.append(torch.tensor(list(side_by_side(score, kernels)), dtype=torch.float64))
    top = min(10, len(kernels))
    best = [set(score.topk(top).indices.tolist()) for score in scores]
    value = spearman(*scores, at_least=2) or 0.0
    return Stability(
        spearman=value,
        threshold=THRESHOLD,
        can_tell=value >= THRESHOLD,
        n_per_half=min(len(half) for half in halves),
        top_overlap=len(best[0] & best[1]) / top,
        score=joint.of_halves if joint else DEFAULT_SCORE,
        top_agreement=top_agreement(*scores),
    )


def top_agreement(one: Tensor, other: Tensor) -> float | None:
    """Return how often a site that is among the best by one side beats, by the other side, one that is not.

    The best are ten, or a quarter of fewer than forty. 0.5 is chance, ties count half; ``None`` with fewer than four.

    Args:
        one: Scores ``site``.
        other: Scores of the same sites, from other prompts.

    Returns:
        A probability between 0 and 1, or ``None``.
    """
    top = min(10, len(one) // 4)
    if top < 1:
        return None
    found = []
    for chooses, judges in ((one, other), (other, one)):
        best = torch.zeros(len(one), dtype=torch.bool)
        best[chooses.topk(top).indices] = True
        difference = judges[best][:, None] - judges[~best][None, :]
        found.append(((difference > 0).double() + (difference == 0).double() / 2).mean())
    return float(sum(found) / 2)


def learning_curve(kernel: Tensor, problem: Problem, rows: Rows) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return numbers of prompts learned from and the learnable share from so many, against a fixed update.

    Args:
        kernel: Kernel of unit mean diagonal ``(row row)``.
        problem: The held-out problem, whose update does not change with the number of prompts.
        rows: Which example each row is of.

    Returns:
        Five numbers of prompts at most, up to all of a half, and the share learned from so many.
    """
    smallest = min(len(torch.unique(rows.example[d.train])) for d in problem.directions)
    counts = sorted({max(2, smallest * part // 8) for part in (1, 2, 4, 6, 8)})
    return tuple(counts), tuple(quick_share(kernel, problem, learn_from=(n, rows)) for n in counts)
