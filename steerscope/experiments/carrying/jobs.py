"""Jobs, stages that ask for them one after the other, and the plain way to do them: here, in order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Protocol


class OutOfTime(Exception):
    """The deadline of the work is over; everything that was finished is kept."""


class Job(Protocol):
    """Something that one process does alone; its result is kept where all find it."""

    @property
    def name(self) -> str:
        """What every process calls it; fit for the name of a file."""

    def is_done(self) -> bool:
        """Say whether its result is kept."""

    def do(self) -> None:
        """Do it here and keep the result."""

    def skip(self) -> None:
        """Called instead of :meth:`do` where it is done already, for the progress."""

    def stays(self) -> bool:
        """Say whether it has to be done by this process."""

    def sent(self) -> Any:
        """Return what another machine needs to do it."""

    def take(self, result: Any) -> None:
        """Keep what another machine sent back."""


# A stage yields the jobs that it waits for and goes on when all of them are done. One that yields none waits for a
# stage before it.
Stage = Generator[Sequence[Job], None, Any]


@dataclass
class FileJob:
    """A job whose result is one file, made here.

    Attributes:
        path: The file.
        make: Writes it, whole or not at all.
    """

    path: Path
    make: Callable[[], object]

    @property
    def name(self) -> str:
        """The file's name."""
        return f"file-{self.path.name}"

    def is_done(self) -> bool:
        """Say whether the file is there."""
        return self.path.exists()

    def do(self) -> None:
        """Write the file."""
        self.make()

    def skip(self) -> None:
        """Nothing to count."""

    def stays(self) -> bool:
        """Return True: it is made where the model is."""
        return True

    def sent(self) -> Any:
        """Never called."""

    def take(self, result: Any) -> None:
        """Never called."""

    def stage(self) -> Stage:
        """Yield the job as a stage of its own."""
        yield [self]


class Carrier(Protocol):
    """What carries jobs."""

    def carry(self, phases: Sequence[Sequence[Stage]], deadline: float = math.inf) -> None:
        """Do all jobs of all stages.

        Args:
            phases: Stages that are of one urgency, the most urgent first: where several jobs could be done, those of
                earlier phases are. A stage waits for none that comes after it.
            deadline: Of ``time.monotonic()``.

        Raises:
            OutOfTime: The deadline passed; what was finished is kept.
        """


class InProcess:
    """One job after the other, in this process, stage by stage."""

    def carry(self, phases: Sequence[Sequence[Stage]], deadline: float = math.inf) -> None:
        """Do all jobs; they look at their deadline themselves. See :meth:`Carrier.carry`.

        Args:
            phases: Stages of one urgency each, the most urgent first.
            deadline: Of ``time.monotonic()``.

        Raises:
            RuntimeError: A stage waits for one that comes after it.
        """
        for stage in chain.from_iterable(phases):
            for jobs in stage:
                if not jobs:
                    raise RuntimeError("a stage waits for one that comes after it")
                for job in jobs:
                    if job.is_done():
                        job.skip()
                    else:
                        job.do()


@dataclass
class _InProgress:
    phase: int
    stage: Stage
    waits_for: list[Job] = field(default_factory=list)


class Open:
    """Stages in progress, for carriers that do jobs of several at once."""

    def __init__(self, phases: Sequence[Sequence[Stage]]) -> None:
        self._stages = [_InProgress(phase, stage) for phase, stages in enumerate(phases) for stage in stages]
        self._own: set[str] = set()

    def jobs(self) -> list[list[Job]]:
        """Go on with every stage whose jobs are done; return the jobs that are not, each once, by phase."""
        moved = True
        while moved:
            moved = False
            for one in list(self._stages):
                one.waits_for = [job for job in one.waits_for if not self._is_done(job)]
                if one.waits_for:
                    continue
                found = next(one.stage, None)
                if found is None:
                    self._stages.remove(one)
                else:
                    one.waits_for = list(found)
                moved = moved or found is None or bool(found)
        waiting: dict[str, tuple[int, Job]] = {}
        for one in self._stages:
            for job in one.waits_for:
                waiting.setdefault(job.name, (one.phase, job))
        if self._stages and not waiting:
            raise RuntimeError("stages wait for each other")
        return [[job for _, job in own] for _, own in groupby(waiting.values(), key=lambda item: item[0])]

    def did(self, job: Job) -> None:
        """Say that a job was done by this carrier: it has told its progress."""
        self._own.add(job.name)

    def _is_done(self, job: Job) -> bool:
        done = job.is_done()
        if done and job.name not in self._own:
            job.skip()
        return done


def require_time(deadline: float) -> None:
    """Raise OutOfTime after a deadline of ``time.monotonic()``."""
    if time.monotonic() > deadline:
        raise OutOfTime
