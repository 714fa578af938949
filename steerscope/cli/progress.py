"""Progress on the error stream: a bar in a terminal, lines in a log; both say how long a stage will take yet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from steerscope.analysis.stopwatch import StageProgress

STAGES = {
    "load": "loading the model and checking its sites",
    "capture": "forward and backward passes",
    "score": "scoring sites",
    "step": "taking a step at every site",
    "sets": "growing the best set",
    "stability": "comparing halves of the prompts",
    "propositions": "trying propositions",
    "finetune": "fine-tuning for a few steps",
    "slopes": "slopes of the remainder in float64",
    "block_slopes": "slopes of single blocks in float64",
    "conditioning": "conditioning and oracle edits",
    "radius": "radius of the first-order map",
    "stream_shares": "parts of the stream",
    "strength": "strength of oracle edits",
    "oracle_spectra": "spectra of oracle shifts",
    "residual_map": "residuals by site and weight matrix",
    "train": "training",
    "generate": "generating answers",
    "likelihood": "likelihoods of choices",
    "generate_before": "generating answers before training",
    "likelihood_before": "likelihoods of choices before training",
    "wait": "waiting for what other processes have begun",
}
# Seconds without a line in a log; as part of what a stage has taken, so that hours do not make hundreds of lines.
_SILENT, _SILENT_SHARE = 30.0, 0.1
# Seconds below which what is left is not said.
_WORTH_SAYING = 10.0


@contextmanager
def stage_progress(*, quiet: bool) -> Iterator[StageProgress]:
    """Give a function that shows how far a command is.

    Yields:
        A function of the stage's name, steps done and steps in all. Stages ``NAME: WHAT`` are one stage ``NAME``.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield Log()


@dataclass
class Remaining:
    """How long work of a known amount will take yet, if it goes on as fast as it went since it was first seen.

    Attributes:
        since: When it was first seen, seconds.
        done_before: How much was done then: what an earlier process did tells nothing of this one's speed.
        at: When it was last seen.
        left: Seconds that were left then; ``None`` before any of it was done.
    """

    since: float
    done_before: int
    at: float
    left: float | None = None

    def see(self, done: int, total: int, now: float) -> None:
        """Take note of how much is done.

        Args:
            done: Parts that are done.
            total: Parts in all; may change.
            now: The time, seconds.
        """
        self.at = now
        own = done - self.done_before
        self.left = (now - self.since) * (total - done) / own if own > 0 else None

    def now(self, now: float) -> float | None:
        """Return the seconds that are left at a time; ``None`` where they are not known."""
        return None if self.left is None else max(self.left - (now - self.at), 0.0)


def time_words(seconds: float) -> str:
    """Return a duration in words, as exact as an estimate is.

    Example:
        >>> time_words(38), time_words(700), time_words(10_000)
        ('40 s', '12 min', '2.8 h')
    """
    if seconds < 90:
        return f"{max(round(seconds / 10) * 10, 10)} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class _Left(ProgressColumn):
    """What is left of a bar's stage."""

    def render(self, task: Task) -> Text:
        """Return the column's text: an estimate, empty where none is known."""
        remaining: Remaining = task.fields["remaining"]
        seconds = None if task.finished else remaining.now(time.monotonic())
        return Text("" if seconds is None else f"about {time_words(seconds)} left", style="progress.remaining")


@contextmanager
def _bars() -> Iterator[StageProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), _Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks, remaining = {}, dict[str, Remaining]()

        def show(stage: str, done: int, total: int) -> None:
            work, now = stage.partition(":")[0], time.monotonic()
            if work not in tasks:
                remaining[work] = Remaining(now, done, now)
                tasks[work] = bars.add_task(_label(stage), total=total, remaining=remaining[work])
            remaining[work].see(done, total, now)
            bars.update(tasks[work], completed=done, total=total, description=_label(stage))

        yield show


class Log:
    """One line when a stage begins, at every quarter of it, and after some silence."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, Remaining] = {}
        self._shown: set[tuple[str, int]] = set()
        self._last: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is, if that is worth a line.

        Args:
            stage: Its name.
            done: Parts that are done.
            total: Parts in all.
        """
        work, now = stage.partition(":")[0], self._clock()
        remaining = self._seen.setdefault(work, Remaining(now, done, now))
        remaining.see(done, total, now)
        quarter = 4 * done // max(total, 1)
        silence = now - self._last.get(work, now)
        if (work, quarter) in self._shown and silence < max(_SILENT, _SILENT_SHARE * (now - remaining.since)):
            return
        self._shown.add((work, quarter))
        self._last[work] = now
        share = ", done" if quarter == 4 else f" {100 * done // max(total, 1)}%" if done else ""
        left = remaining.now(now)
        more = "" if quarter == 4 or left is None or left < _WORTH_SAYING else f", about {time_words(left)} left"
        print(f"{_label(stage)}{share}{more}", file=sys.stderr, flush=True)


def _label(stage: str) -> str:
    work, colon, what = stage.partition(":")
    return STAGES.get(work, work) + colon + what
