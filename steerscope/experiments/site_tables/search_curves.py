"""Regret against cost: what searches for a good site would have come to, replayed from a table's own trainings.

Nothing is trained: a search that trains a site for some steps reads that run's losses so far, and one that trains it to
the end reads what it came to. The site that a search chooses is the one with the lowest loss on selection examples
among those it finished; its regret is against the best site of the table by the mean over seeds, on test examples.

- ``random``: sites in random order, to the end (the mean over :data:`ORDERS` orders).
- ``depth``: lowest layers first; sites of one layer in random order.
- the score alone: its first sites, to the end.
- halving: all sites for a part of the schedule, the better half of them for twice as long, and so on; the last
  survivors to the end. Losses of batches are noisy, so runs are compared by their mean over the last steps.
- score plus halving: the same, starting from the score's first quarter.

The cost of a step at a site is the part of the blocks that lie from it upwards, since what is below an edit is computed
once for all; costs are relative to training every site once to the end with one seed. Learning rates are those that the
table chose: what choosing them costs is in no search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steerscope.experiments.agreement.correlations import Array, finite_losses
from steerscope.experiments.agreement.layer_bootstrap import Estimate, mean_of
from steerscope.experiments.site_tables.common import Common, common_outcomes, score_array
from steerscope.experiments.site_tables.table import SiteTable

ORDERS = 32
# Steps whose mean stands for a run's loss so far.
SMOOTHED = 8
# Score plus halving starts from this part of the sites.
START = 1 / 4
# Parts of the schedule at which halvings of different cost begin.
BEGINNINGS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True)
class SearchPoint:
    """What a search comes to at one cost.

    Attributes:
        cost: Of its steps, relative to training every site once; mean over seeds and orders.
        loss: Regret in test loss, nats, mean over seeds, with its 95% interval over them.
        accuracy: Regret in test accuracy, the same.
    """

    cost: float
    loss: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class SearchCurve:
    """A search at several costs, cheapest first."""

    name: str
    points: tuple[SearchPoint, ...]


@dataclass(frozen=True)
class _Runs:
    """One seed's trainings ``site``, and what its choices are worth."""

    losses: Array  # site step
    selection: Array
    loss_regret: Array
    accuracy_regret: Array
    step_cost: Array

    @property
    def num_steps(self) -> int:
        return int(self.losses.shape[1])


def search_curves(
    table: SiteTable, scores: Mapping[str, Mapping[str, float]] | None = None, *, seed: int = 0
) -> tuple[SearchCurve, ...]:
    """Replay searches.

    Args:
        table: The table.
        scores: Scores to search with, by name; without them those that the table holds.
        seed: Of random orders.

    Returns:
        One curve per score and one for random orders: the loss reached by the number of sites trained.

    Raises:
        InputError: Too few tested sites, or a score without a value for one of them.
    """
    common = common_outcomes(table)
    arrays = {
        name: score_array(name, own, common.sites) for name, own in (table.scores if scores is None else scores).items()
    }
    runs = _runs(table, common)
    rng = np.random.default_rng(seed)
    count = len(common.sites)
    orders = [rng.permutation(count) for _ in range(ORDERS)]
    firsts = sorted({min(k, count) for k in (1, 2, 3, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, count)})

    def by(score: Array) -> list[list[int]]:
        """Return orders, best first; ties are in the order of each random one."""
        return [[int(i) for i in order[np.argsort(-score[order], kind="stable")]] for order in orders]

    random = [[int(i) for i in order] for order in orders]
    curves = [_trained("random order", random, firsts, runs)]
    curves.append(_trained("depth", by(-common.layers.astype(np.float64)), firsts, runs))
    curves.append(_halved("halving", random[:1], runs))
    for name, score in arrays.items():
        ranked = by(score) if len(np.unique(score)) < count else by(score)[:1]
        curves.append(_trained(name, ranked, firsts, runs))
        start = max(round(START * count), 2)
        curves.append(_halved(f"{name} + halving", [order[:start] for order in ranked], runs))
    return tuple(curves)


def halving_cost(start: Sequence[int], runs: _Runs, first_steps: int) -> tuple[list[int], float]:
    """Replay one halving.

    Args:
        start: The sites that it begins with.
        runs: One seed's trainings.
        first_steps: Steps of the first round; each round has twice as many as the one before, in all.

    Returns:
        The sites that were trained to the end, and the cost in steps times blocks.
    """
    alive, done, cost = list(start), 0, 0.0
    steps = first_steps
    while True:
        steps = min(steps, runs.num_steps)
        cost += (steps - done) * float(runs.step_cost[alive].sum())
        done = steps
        if steps == runs.num_steps:
            return alive, cost
        seen = runs.losses[alive, max(steps - SMOOTHED, 0) : steps].mean(1)
        keep = max(-(-len(alive) // 2), 1)
        alive = [alive[int(i)] for i in np.argsort(seen, kind="stable")[:keep]]
        # One site left needs no more comparisons: it is trained to the end.
        steps = runs.num_steps if keep == 1 else 2 * steps


def _runs(table: SiteTable, common: Common) -> list[_Runs]:
    test = finite_losses(common.losses).mean(1)
    accuracy = common.accuracies.mean(1)
    step_cost = np.array([(table.num_layers - one.site.layer) / table.num_layers for one in common.outcomes])
    found = []
    for number, own in enumerate(common.seeds):
        trajectories = table.trajectories(own)
        losses = np.array([trajectories[site] for site in common.sites])
        selection = np.array([one.selection_losses[number] for one in common.outcomes])
        found.append(_Runs(losses, selection, test - test.min(), accuracy.max() - accuracy, step_cost))
    return found


def _trained(name: str, orders: Sequence[Sequence[int]], firsts: Sequence[int], runs: Sequence[_Runs]) -> SearchCurve:
    points = []
    for first in firsts:
        tries = [
            [(order[:first], one.num_steps * float(one.step_cost[order[:first]].sum())) for order in orders]
            for one in runs
        ]
        points.append(_point(tries, runs))
    return SearchCurve(name, tuple(points))


def _halved(name: str, starts: Sequence[Sequence[int]], runs: Sequence[_Runs]) -> SearchCurve:
    steps = sorted({max(round(part * runs[0].num_steps), 1) for part in BEGINNINGS})
    points = [_point([[halving_cost(start, one, first) for start in starts] for one in runs], runs) for first in steps]
    return SearchCurve(name, tuple(sorted(points, key=lambda point: point.cost)))


def _point(tries: Sequence[Sequence[tuple[Sequence[int], float]]], runs: Sequence[_Runs]) -> SearchPoint:
    """Return the point of tries ``seed order``, each the sites that were finished and the cost."""
    loss, accuracy, cost = [], [], []
    for own, one in zip(tries, runs, strict=True):
        chosen = [min(finished, key=lambda site: float(one.selection[site])) for finished, _ in own]
        loss.append(float(np.mean(one.loss_regret[chosen])))
        accuracy.append(float(np.mean(one.accuracy_regret[chosen])))
        everything = one.num_steps * float(one.step_cost.sum())
        cost.append(float(np.mean([spent for _, spent in own])) / everything)
    return SearchPoint(float(np.mean(cost)), _over_seeds(loss), _over_seeds(accuracy))


def _over_seeds(values: Sequence[float]) -> Estimate:
    """Return a mean over seeds with Student's interval; from one seed the interval is the value alone."""
    if len(values) < 2:
        return Estimate(values[0], values[0], values[0])
    return mean_of(values).within(0.0, np.inf)
