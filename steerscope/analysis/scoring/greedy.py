"""Which few sites together: kernels of independent sites add, so a set is scored like a single site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import torch

from steerscope.analysis.results import GreedyStep
from steerscope.analysis.scoring.intervals import jackknife_interval
from steerscope.analysis.scoring.joint import JointScores, LearnableShares
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores import get_score
from steerscope.process import side_by_side
from steerscope.sites import Site

SCREENED_ON = 32
"""Candidates for a set are compared on so many prompts of either half first, or a third of it, if that is more."""
FINALISTS = 32
"""So many of them, the best there, are scored on all prompts."""


# Numbers of kernels that are made at once: of large ones one, of small ones several.
_TOGETHER = 2**22


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
        raises the score. Greedy, so no set of that size need be the best; of many sites and prompts all are compared
        on a third of the prompts at every step, and the best :data:`FINALISTS` on all, so that a site which is a
        little better on all may be passed over; before growth ends, all are compared on all.

    Cost: two factorisations of half the rows per finalist and step (but for the first, given ``alone``), and two of a
    sixth of them per candidate.
    """
    score = joint or LearnableShares(kernels, problem)
    glance = _glance(joint, problem)
    members: list[Site] = []
    costs: list[int] = []
    spent = 0
    best_value = -float("inf")
    for step in range(1, max_sites + 1):
        fits = [s for s in kernels if s not in members and (budget is None or spent + num_params[s] <= budget)]
        if not fits:
            break
        if step == 1 and alone is not None:
            values = [alone[site] for site in fits]
        else:
            others: list[Site] = []
            if glance is not None and len(fits) > FINALISTS:
                best = set(torch.tensor(_quick(glance, members, fits)).topk(FINALISTS).indices.tolist())
                others = [site for place, site in enumerate(fits) if place not in best]
                fits = [site for place, site in enumerate(fits) if place in best]
            values = _quick(score, members, fits)
            if max(values) <= best_value and others:
                fits, values = [*fits, *others], [*values, *_quick(score, members, others)]
        top = int(torch.tensor(values).argmax())
        if values[top] <= best_value:
            break
        site, best_value = fits[top], values[top]
        members.append(site)
        spent += num_params[site]
        costs.append(spent)
        if progress is not None:
            progress(step, max_sites)
    highest = get_score(score.of_sets).highest
    steps: list[GreedyStep] = []
    sets = [members[:size] for size in range(1, len(members) + 1)]
    for found, site, cost in zip(side_by_side(score.of_set, sets), members, costs, strict=True):
        interval = jackknife_interval(found, highest)
        steps.append(GreedyStep(len(steps) + 1, site.layer, site.kind.value, "linear", *interval, cost))
    return tuple(steps)


def _glance(joint: JointScores | None, problem: Problem) -> JointScores | None:
    """Return the score on some of the prompts; ``None`` where it would not cost much less than on all."""
    if joint is None:
        return None
    rows = joint.like.rows
    smaller = min(len(rows.examples_of(way.train)) for way in problem.directions)
    count = max(SCREENED_ON, smaller // 3)
    return joint.on_first(count) if 2 * count <= smaller else None


def _quick(score: JointScores | LearnableShares, members: list[Site], candidates: list[Site]) -> list[float]:
    """Return the score of the set with each candidate added."""
    rows = sum(len(way.train_in) for way in score.problem.directions)
    together = max(1, _TOGETHER // rows**2)
    parts = [candidates[first : first + together] for first in range(0, len(candidates), together)]
    return list(chain.from_iterable(side_by_side(lambda part: score.with_each(members, part), parts)))
