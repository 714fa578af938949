"""Jobs shared by processes that see one folder: each claims what nobody does yet, and waits for the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from steerscope.analysis.stopwatch import StageProgress
from steerscope.experiments.carrying.claims import Claims
from steerscope.experiments.carrying.jobs import Job, Open, Stage, require_time
from steerscope.experiments.carrying.shard import Shard

# Seconds between two looks at what others do, at first and at most.
LOOK, LOOK_AT_MOST = 0.2, 5.0
WAITING = "wait"


class Shards:
    """A carrier for one of several processes, which together do every job once.

    Attributes:
        folder: Where claims are, in the folder that all share.
        shard: Which process this is: it begins at its part of what can be done, and helps with the rest.
        progress: Called while it waits, with the stage ``wait``, and how many jobs it waited for are done, and in all.
    """

    def __init__(
        self,
        folder: Path,
        shard: Shard,
        progress: StageProgress | None = None,
    ) -> None:
        self.folder, self.shard, self.progress = folder, shard, progress

    def carry(self, phases: Sequence[Sequence[Stage]], deadline: float = math.inf) -> None:
        """Do or wait for all jobs; see :meth:`~steerscope.experiments.carrying.jobs.Carrier.carry`.

        Args:
            phases: Stages of one urgency each, the most urgent first.
            deadline: Of ``time.monotonic()``.
        """
        work = Open(phases)
        with Claims(self.folder) as claims:
            look, waited = LOOK, 0
            while jobs := work.jobs():
                job = next((job for job in self._from_its_place(jobs) if claims.take(job.name)), None)
                if job is None:
                    require_time(deadline)
                    waited = self._wait(waited, jobs, look)
                    look = min(2 * look, LOOK_AT_MOST)
                    continue
                look = LOOK
                # Its last owner may have finished it, and died before it could say so.
                if not job.is_done():
                    job.do()
                    work.did(job)
                claims.finish(job.name)

    def _from_its_place(self, phases: Sequence[Sequence[Job]]) -> Iterator[Job]:
        for jobs in phases:
            start = len(jobs) * (self.shard.index - 1) // self.shard.count
            yield from (*jobs[start:], *jobs[:start])

    def _wait(self, waited: int, phases: Sequence[Sequence[Job]], seconds: float) -> int:
        """Sleep; return how many jobs at most were waited for at once."""
        left = sum(len(jobs) for jobs in phases)
        waited = max(waited, left)
        if self.progress is not None:
            self.progress(WAITING, waited - left, waited)
        time.sleep(seconds)
        return waited
