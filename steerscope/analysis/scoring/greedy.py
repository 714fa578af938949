"""Which few sites together: kernels of independent sites add, so a set is scored like a single site."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from steerscope.analysis.results import GreedyStep
from steerscope.analysis.scoring.intervals import jackknife_interval
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores.learnable_share import quick_share, share_of
from steerscope.sites import Site


def grow_set(
    kernels: Mapping[Site, Tensor],
    problem: Problem,
    num_params: Mapping[Site, int],
    *,
    max_sites: int,
    budget: int | None,
    shares: Mapping[Site, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[GreedyStep, ...]:
    """Add, one at a time, the site that raises the learnable share of the set most.

    Args:
        kernels: Unit-scale kernels ``row row`` of the linear edits.
        problem: The held-out problem.
        num_params: Parameters of each site's edit.
        max_sites: Stop at so many sites.
        budget: Stop when no further site fits into so many parameters (``None``: no limit).
        shares: Learnable share of every site alone, where it is known: the first step then costs nothing.
        progress: Called after every site added.

    Returns:
        One step per site, with the share and parameters of the set so far. Growth ends early when no site
        raises the share. Greedy, so no set of that size need be the best.

    Cost: two factorisations of half the rows per candidate and step (but for the first, given ``shares``).
    """
    steps: list[GreedyStep] = []
    members: list[Site] = []
    total: Tensor | None = None
    spent = 0
    best_value = -float("inf")

    def share_with(site: Site) -> float:
        if total is None:
            return shares[site] if shares is not None else quick_share(kernels[site], problem)
        return quick_share(total + kernels[site], problem)

    for step in range(1, max_sites + 1):
        fits = [s for s in kernels if s not in members and (budget is None or spent + num_params[s] <= budget)]
        if not fits:
            break
        values = [share_with(site) for site in fits]
        top = int(torch.tensor(values).argmax())
        if values[top] <= best_value:
            break
        site, best_value = fits[top], values[top]
        total = kernels[site] if total is None else total + kernels[site]
        members.append(site)
        spent += num_params[site]
        value, low, high = jackknife_interval(share_of(total, problem))
        steps.append(GreedyStep(step, site.layer, site.kind.value, "linear", value, low, high, spent))
        if progress is not None:
            progress(step, max_sites)
    return tuple(steps)
