"""Choose a learning rate on a grid whose winner is interior: its neighbours on both sides were tried and are worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Neighbours on the grid differ by half a decade.
STEP = math.sqrt(10.0)
# As far as a search goes from 1; beyond it the winner stays at the edge, and the record says so.
LOWEST, HIGHEST = -12, 2


@dataclass(frozen=True)
class Choice:
    """The winner, whether it is interior, and what every rate tried gave."""

    learning_rate: float
    interior: bool
    tried: dict[float, float]


def rate(index: int) -> float:
    """Return the learning rate at a place of the grid: ``10^(index / 2)``, rounded to three digits."""
    return float(f"{STEP**index:.3g}")


def choose(loss_at: Callable[[float], float], start: int) -> Choice:
    """Walk downhill on the grid from ``start`` until both neighbours of the best rate were tried.

    Args:
        loss_at: Selection loss of a run with this learning rate (infinite where it diverged).
        start: Place on the grid to begin at; any start gives an interior winner, a near one costs fewer runs.

    Cost: three runs if the start is the winner, one more for every step away from it.
    """
    found: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in found:
            found[index] = loss_at(rate(index))
        return found[index]

    best = start
    at(best)
    while True:
        around = [i for i in (best - 1, best + 1) if LOWEST <= i <= HIGHEST]
        better = min(around, key=at)
        if not at(better) < found[best]:
            interior = len(around) == 2 and math.isfinite(found[best])
            return Choice(rate(best), interior, {rate(i): found[i] for i in sorted(found)})
        best = better
