"""Successive halving: train the first steps of many runs, continue with the better half, and so on to the full length.

Every run follows the same schedule from its first step to its last; stopping and resuming changes nothing in
it. Runs of one seed see the same batches, so their losses, on examples that they have not learned from yet, compare in
pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steerscope.experiments.engine.candidate import Run
from steerscope.experiments.engine.staged import StagedSweep

# Rungs end after these parts of the schedule. After the warm-up, a tenth, losses say something about a run.
RUNGS = (0.2, 0.45, 1.0)
# Of the runs of a rung so many go on.
KEPT = 1 / 3
# So many sites at least are trained to the end.
FINALISTS = 2


@dataclass(frozen=True)
class Standing:
    """How far a run came, and how it stood there.

    Attributes:
        run: Candidate, learning rate and seed.
        steps: Steps it was trained for.
        loss: Mean loss over the second half of its steps, nats; infinite where it diverged.
    """

    run: Run
    steps: int
    loss: float


def halve(
    sweep: StagedSweep,
    runs: Sequence[Run],
    *,
    shrink: Callable[[int, float], int] | None = None,
) -> list[Standing]:
    """Train runs by successive halving.

    Args:
        sweep: Trains them, and keeps what is done.
        runs: All of one seed; a site may be there with several learning rates.
        shrink: Called before a rung with how many runs would go on and with its part of the schedule; returns how many
            there is time for.

    Returns:
        All runs, those that came further first, then by loss.

    Raises:
        OutOfTime: The deadline came within the first rung.

    Cost: of ``n`` runs about ``n (0.2 + 0.25 / 3 + 0.55 / 9) = 0.34 n`` whole ones.
    """
    steps = sweep.schedule.steps
    standings: dict[int, Standing] = {}
    going = list(range(len(runs)))
    for index, part in enumerate(RUNGS):
        until = max(1, round(part * steps))
        if shrink is not None and index:
            going = going[: max(1, shrink(len(going), part))]
        losses = sweep.advance([runs[place] for place in going], until)
        for place, trajectory in zip(going, losses, strict=True):
            standings[place] = Standing(runs[place], until, loss_of(trajectory, until))
        order = sorted(going, key=lambda place: standings[place].loss)
        if index + 1 < len(RUNGS):
            going = _best(order, runs, max(math.ceil(KEPT * len(going)), FINALISTS))
    return sorted(standings.values(), key=lambda one: (-one.steps, one.loss))


def loss_of(losses: Sequence[float], until: int) -> float:
    """Return the mean loss over the second half of the steps so far; infinite where the run stopped before.

    Args:
        losses: Training losses in nats, one per step.
        until: The step that all compared runs have reached.

    Returns:
        Mean loss in nats over steps ``until // 2`` to ``until``.

    Example:
        >>> loss_of([4.0, 3.0, 2.0, 1.0], until=4), loss_of([4.0, 3.0], until=4)
        (1.5, inf)
    """
    if len(losses) < until:
        return math.inf
    late = losses[until // 2 : until]
    return sum(late) / len(late) if all(math.isfinite(loss) for loss in late) else math.inf


def _best(order: Sequence[int], runs: Sequence[Run], count: int) -> list[int]:
    """Return the places of the best runs, at most two rates of one candidate."""
    found: list[int] = []
    times: dict[str, int] = {}
    for place in order:
        name = runs[place][0].name
        if times.get(name, 0) < 2:
            found.append(place)
            times[name] = times.get(name, 0) + 1
        if len(found) == count:
            break
    return found
