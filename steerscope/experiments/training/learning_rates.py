"""A learning rate within a budget: the same grid, and at most so many runs, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable

from steerscope.experiments.validation.learning_rates import STEP, Choice, choose, rate


class _SpentError(Exception):
    """The budget is used up."""


def choose_within(loss_at: Callable[[float], float], start: int, tries: int) -> Choice:
    """Walk the half-decade grid downhill until both neighbours of the best rate were tried, or the budget is spent.

    Args:
        loss_at: Validation loss of a run with this learning rate; infinite where it diverged.
        start: Place on the grid to begin at.
        tries: Most runs.

    Returns:
        The best rate tried. It is interior if both of its neighbours were tried and are not better; a winner at the
        edge of what the budget allowed is not.

    Cost: three runs if the start is the winner, one more for every step away from it, at most ``tries``.
    """
    tried: dict[float, float] = {}

    def counted(learning_rate: float) -> float:
        if len(tried) == tries:
            raise _SpentError
        tried[learning_rate] = loss_at(learning_rate)
        return tried[learning_rate]

    try:
        return choose(counted, start)
    except _SpentError:
        best = min(tried, key=lambda one: tried[one])
        place = round(math.log(best, STEP))
        interior = math.isfinite(tried[best]) and rate(place - 1) in tried and rate(place + 1) in tried
        return Choice(best, interior, dict(sorted(tried.items())))
