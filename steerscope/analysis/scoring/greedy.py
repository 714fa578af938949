"""Which few sites together: kernels of independent sites add, so a set is scored like a single site."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from steerscope.analysis.results import GreedyStep
from steerscope.analysis.scoring.intervals import jackknife_interval
from steerscope.analysis.scoring.joint import JointScores, LearnableShares
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores import get_score
from steerscope.process import side_by_side
from steerscope.sites import Site

TRIED = 64
"""So many candidates are tried for the third place of a set and those after it: the best of the second place."""


def grow_set(
    kernels: Mapping[Site, torch.Tensor],
    problem: Problem,
    num_params: Mapping[Site, int],
    *,
    max_sites: int,
    budget: int | None,
    alone: Mapping[Site, float] | None = None,
    joint: JointScores | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[GreedyStep, ...]:
    """Add, one at a time, the site that raises the score of the set most.

    Args:
        kernels: Unit-scale kernels ``row row`` of the linear edits.
        problem: The held-out problem.
        num_params: Parameters of each site's edit.
        max_sites: Stop at so many sites.
        budget: Stop when no further site fits into so many parameters (``None``: no limit).
        alone: Score of every site alone, where it is known: the first step then costs nothing.
        joint: The score of sets; without it, the learnable share.
        progress: Called after every site added.

    Returns:
        One step per site, with the score and parameters of the set so far. Growth ends early when no site
        raises the score. Greedy, so no set of that size need be the best; from the third site on, of the
        :data:`TRIED` candidates that were best at second place, so that growth may end where another candidate
        would have raised the score a little (by one percentage point in all on the bundled model and ListOps).

    Cost: two factorisations of half the rows per candidate and step (but for the first, given ``alone``).
    """
    score = joint or LearnableShares(kernels, problem)
    steps: list[GreedyStep] = []
    members: list[Site] = []
    spent = 0
    best_value = -float("inf")
    candidates = list(kernels)
    for step in range(1, max_sites + 1):
        fits = [s for s in candidates if s not in members and (budget is None or spent + num_params[s] <= budget)]
        if not fits:
            break
        if step == 1 and alone is not None:
            values = [alone[site] for site in fits]
        else:
            sets = [[*members, site] for site in fits]
            values = list(side_by_side(lambda sites: float(score.of_set(sites, quick=True)[0]), sets))
        if step == 2:
            kept = torch.tensor(values).topk(min(TRIED, len(values))).indices
            candidates = [fits[place] for place in sorted(kept.tolist())]
        top = int(torch.tensor(values).argmax())
        if values[top] <= best_value:
            break
        site, best_value = fits[top], values[top]
        members.append(site)
        spent += num_params[site]
        value, low, high = jackknife_interval(score.of_set(members), get_score(score.of_sets).highest)
        steps.append(GreedyStep(step, site.layer, site.kind.value, "linear", value, low, high, spent))
        if progress is not None:
            progress(step, max_sites)
    return tuple(steps)
