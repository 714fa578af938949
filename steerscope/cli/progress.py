"""Progress on the error stream: a bar in a terminal, a line per stage and quarter in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
    "wait": "waiting for what other processes have begun",
}


@contextmanager
def stage_progress(*, quiet: bool) -> Iterator[StageProgress]:
    """Give a function that shows how far a ranking is.

    Yields:
        A function of the stage's name, steps done and steps in all.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _Log()


@contextmanager
def _bars() -> Iterator[StageProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


class _Log:
    """One line when a stage begins and at every quarter of it."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, int]] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if (stage, quarter) not in self._shown:
            self._shown.add((stage, quarter))
            share = f" {25 * quarter}%" if 0 < quarter < 4 else ", done" if quarter == 4 else ""
            print(f"{STAGES.get(stage, stage)}{share}", file=sys.stderr, flush=True)
