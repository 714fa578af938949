"""How far sketching moves kernels and learnable shares, measured on the ranking's own features."""

from __future__ import annotations

from typing import Any

import torch

from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.rounded import blocks_of
from steerscope.analysis.scoring.intervals import spearman
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores.learnable_share import quick_share
from steerscope.process import side_by_side
from steerscope.sites import Site


def sketch_errors(
    features: Features, rows: Rows, problem: Problem, sites: list[Site], plan: SketchPlan
) -> dict[str, Any]:
    """Measure the sketches' error: two halves of the blocks are two independent sketches.

    Their difference, halved, estimates the error of the whole (which has half the variance of each).

    Args:
        features: Sketched features.
        rows: What kernels' rows are.
        problem: The held-out problem.
        sites: Sites in the order of the model; at most some two dozen of them are looked at.
        plan: How features were sketched.

    Returns:
        Errors of kernels, relative to their norm, and of learnable shares, over the sampled sites.
    """
    sample = sites[:: max(1, len(sites) // 24)]

    def of_halves(site: Site) -> tuple[float, list[float]]:
        feature = features.linear[site]
        half = (plan.blocks + 1) // 2
        first, second = (
            Kernel.of([part], features, rows, cross=False, what=f"an edit of '{site}'").probe
            for part in (blocks_of(feature, blocks, plan.blocks) for blocks in (slice(half), slice(half, None)))
        )
        whole = float((first + second).norm())
        relative = float((first - second).norm()) / whole if whole > 0 else 0.0
        return relative, [quick_share(kernel, problem) for kernel in (first, second)]

    relative, shares = zip(*side_by_side(of_halves, sample), strict=True)
    pairs = torch.tensor(shares, dtype=torch.float64)
    return {
        "sketch_error": sum(relative) / len(relative),
        "score_error": float((pairs[:, 0] - pairs[:, 1]).pow(2).mean().sqrt() / 2),
        "rank_agreement": spearman(pairs[:, 0], pairs[:, 1], at_least=2) or 0.0,
        "num_sites_measured": len(sample),
    }
