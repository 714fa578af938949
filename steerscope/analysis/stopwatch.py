"""Seconds by stage, and progress with the stage's name."""

from __future__ import annotations

import time
from collections.abc import Callable

from steerscope.errors import shortened

# Called with the stage's name, steps done and steps in all.
StageProgress = Callable[[str, int, int], None]


_LONGEST = 60


def training_progress(progress: StageProgress | None) -> StageProgress | None:
    """Return what a sweep of many runs calls with the runs it trains now: to the caller all of them are one stage.

    Args:
        progress: What is told; ``None`` for nobody.

    Returns:
        A function that calls it with a stage ``train: NAMES``, names of runs cut short, or ``train``.
    """
    if progress is None:
        return None

    def tell(what: str, done: int, total: int) -> None:
        names = shortened(what, _LONGEST)
        progress(f"train: {names}" if names else "train", done, total)

    return tell


class Stopwatch:
    """Measures stages one after the other; ``stage(None)`` ends the last."""

    def __init__(self, progress: StageProgress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._stage: str | None = None
        self._since = time.perf_counter()

    def stage(self, name: str | None) -> None:
        """End the current stage and begin the next."""
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] = now - self._since
        self._stage, self._since = name, now
        if name is not None:
            self.tick(0, 1)

    def tick(self, done: int, total: int) -> None:
        """Tell the caller how far the stage is.

        Args:
            done: Parts of the stage that are done.
            total: Parts of the stage in all.
        """
        if self._progress is not None and self._stage is not None:
            self._progress(self._stage, done, total)
