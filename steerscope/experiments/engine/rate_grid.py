"""Learning rates on a grid of half decades, and the walk to one whose neighbours on both sides are worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Neighbours on the grid differ by half a decade.
STEP = math.sqrt(10.0)
# As far as a search goes from 1; beyond it the winner stays at the edge, and the record says so.
LOWEST, HIGHEST = -12, 2
# Where the search for an edit's rate begins: 3e-3, or 1e-2 where reads are divided by their root mean square.
EDIT_START = {"none": -5, "rms": -4}


@dataclass(frozen=True)
class Choice:
    """The winner, whether it is interior, and what every rate tried gave."""

    learning_rate: float
    interior: bool
    tried: dict[float, float]


def rate(place: int) -> float:
    """Return the learning rate at a place of the grid: ``10^(place / 2)``, rounded to three digits.

    Example:
        >>> [rate(place) for place in (-6, -5, -4)]
        [0.001, 0.00316, 0.01]
    """
    return float(f"{STEP**place:.3g}")


def next_places(tried: Mapping[int, float], start: int) -> list[int]:
    """Return the places of the grid to try next: three at first, then the missing neighbours of the best.

    Args:
        tried: Loss by place; infinite where the run diverged.
        start: Where to begin.

    Returns:
        Places not tried; none when the best has both neighbours, or the grid ends.

    Example:
        >>> next_places({}, start=-5), next_places({-6: 0.9, -5: 0.7, -4: 0.5}, start=-5)
        ([-6, -5, -4], [-3])
    """
    if not tried:
        return [place for place in (start - 1, start, start + 1) if LOWEST <= place <= HIGHEST]
    best = best_place(tried)
    return [place for place in (best - 1, best + 1) if LOWEST <= place <= HIGHEST and place not in tried]


def choice_among(tried: Mapping[int, float]) -> Choice:
    """Return the best rate tried; it is interior if both of its neighbours were tried."""
    best = best_place(tried)
    interior = math.isfinite(tried[best]) and best - 1 in tried and best + 1 in tried
    return Choice(rate(best), interior, {rate(place): tried[place] for place in sorted(tried)})


def best_place(tried: Mapping[int, float]) -> int:
    """Return the place with the lowest loss; of several the smallest rate, where all diverged included."""
    return min(sorted(tried), key=lambda place: tried[place])


def choose(loss_at: Callable[[float], float], start: int, tries: int | None = None) -> Choice:
    """Walk the grid run by run until both neighbours of the best rate were tried, or the budget is spent.

    Args:
        loss_at: Validation loss of a run with this learning rate; infinite where it diverged.
        start: Place on the grid to begin at; a near one costs fewer runs.
        tries: Most runs; without it as many as it takes.

    Returns:
        The best rate, whether both its neighbours were tried, and the loss of every rate tried.

    Cost: three runs if the start is the winner, one more for every step away from it.
    """
    tried = {start: loss_at(rate(start))}
    while wanted := next_places(tried, start)[: None if tries is None else max(0, tries - len(tried))]:
        tried |= {place: loss_at(rate(place)) for place in wanted}
    return choice_among(tried)
