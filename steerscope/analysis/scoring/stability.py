"""How far to believe the order: rankings from disjoint halves, and shares from fewer prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from steerscope.analysis.results import Stability
from steerscope.analysis.scoring.intervals import spearman
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores.learnable_share import quick_share
from steerscope.sites import Site

THRESHOLD = 0.5
"""Below this agreement of two halves the report says it cannot tell sites apart.

By the Spearman-Brown formula halves that agree at 0.5 make a whole with reliability 2/3."""


def stability_of_halves(
    kernels: Mapping[Site, Tensor], target: Kernel, rows: Rows, halves: tuple[range, range], ridge: float
) -> Stability:
    """Rank the sites twice, on prompts of the one half only and of the other only, and compare.

    Each half is split once more to learn and judge, so these rankings stand on half as many prompts as the
    ranking reported: their agreement is a lower estimate of its own.
    """
    shares = []
    for half in halves:
        middle = half.start + len(half) // 2
        quarters = (range(half.start, middle), range(middle, half.stop))
        problem = Problem.of(target, rows, quarters, num_groups=0, ridge=ridge)
        shares.append(torch.tensor([quick_share(kernel, problem) for kernel in kernels.values()]))
    top = min(10, len(kernels))
    best = [set(share.topk(top).indices.tolist()) for share in shares]
    value = spearman(*shares, at_least=2) or 0.0
    return Stability(
        spearman=value,
        threshold=THRESHOLD,
        can_tell=value >= THRESHOLD,
        n_per_half=min(len(half) for half in halves),
        top_overlap=len(best[0] & best[1]) / top,
    )


def learning_curve(kernel: Tensor, problem: Problem, rows: Rows) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return numbers of prompts learned from and the learnable share from so many, against a fixed update."""
    smallest = min(len(torch.unique(rows.example[d.train])) for d in problem.directions)
    counts = sorted({max(2, smallest * part // 8) for part in (1, 2, 4, 6, 8)})
    return tuple(counts), tuple(quick_share(kernel, problem, learn_from=(n, rows)) for n in counts)
