"""A sweep whose runs can be stopped after some steps, and go on later beside other runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerscope.experiments.carrying.jobs import Stage, require_time
from steerscope.experiments.engine.candidate import Run
from steerscope.experiments.engine.loop import Progress, train_pack
from steerscope.experiments.engine.pack_job import PackJob, Task
from steerscope.experiments.engine.run_records import trained_record
from steerscope.experiments.engine.run_state import RunState, progress_of, states_of
from steerscope.experiments.engine.store import key_of
from steerscope.experiments.engine.sweep import Sweep
from steerscope.finite import finite_or_none, or_infinite


@dataclass
class StagedSweep(Sweep):
    """A :class:`~steerscope.experiments.engine.sweep.Sweep` that also trains the first steps of runs alone."""

    def advance(self, runs: Sequence[Run], until: int) -> list[tuple[float, ...]]:
        """Train runs of edits up to a step of the schedule, from where they are; return the losses of all steps so far.

        The state reached is saved, and a later call resumes from it; a run comes to the same numbers, up to
        rounding, however often it is stopped and whatever trains beside it. A run that reaches the last step is kept as
        one that :meth:`train` made.

        Args:
            runs: Candidate, learning rate and seed of each; they may enter at different blocks.
            until: The step to stop after.

        Returns:
            Per run, in the order given, its training losses in nats, one per step.

        Raises:
            OutOfTime: Before a pack that begins after the deadline.
        """
        # Runs of one pack enter at the same block, and have to be at the same step.
        alike: dict[tuple[int, int], list[Run]] = {}
        chosen: list[PackJob] = []
        for run in runs:
            alike.setdefault((run[0].first_block, self._reached(run, until)), []).append(run)
        for (_, begun), own in sorted(alike.items(), key=lambda item: item[0]):
            chosen += [self._advancing(pack, begun, until) for pack in self._packs(own) if begun < until]
        self.count.ask(sum(len(job.task.runs) for job in chosen))
        self.carried(_at_once(chosen))
        return [self._losses(run, until) for run in runs]

    def _advancing(self, runs: Sequence[Run], begun: int, until: int) -> PackJob:
        gives = tuple(self._at(run, until) for run in runs)
        if until == self.schedule.steps:
            gives += tuple(self._config(*run) for run in runs)
        needs = tuple(self._at(run, begun) for run in runs) if begun else ()
        task = Task("advance", tuple(runs), self.schedule, begun, until)
        return PackJob(
            self.store, gives, needs, task, lambda: self.do(task), self.count, tuple(map(key_of, gives[: len(runs)]))
        )

    def do(self, task: Task) -> None:
        """Do what a job is; see :meth:`Sweep.do`."""
        if task.what != "advance":
            return super().do(task)
        require_time(self.deadline)
        return self._advance(task.runs, task.begun, task.until)

    def _advance(self, chosen: Sequence[Run], begun: int, until: int) -> None:
        names = ", ".join(dict.fromkeys(one.name for one, _, _ in chosen))
        self.count.tell(names)
        pack, ended = self._edits(chosen), list[Progress]()
        start = None
        if begun:
            states = [
                RunState.of_stored(begun, self._losses(run, begun), self.store.weights(self._at(run, begun)))
                for run in chosen
            ]
            start = progress_of(pack, states)
        since = time.perf_counter()
        data = {seed: self.data.rows(seed) for _, _, seed in chosen}
        trained = train_pack(pack, data, self.schedule, start=start, keep=ended.append, until=until)
        seconds = (time.perf_counter() - since) / len(chosen)
        last = until == self.schedule.steps
        judged = self._judged(pack, "selection") if last else []
        for place, (run, state) in enumerate(zip(chosen, states_of(pack, ended[-1]), strict=True)):
            spent = seconds + (float((self.store.get(self._at(run, begun)) or {})["seconds"]) if begun else 0.0)
            if last:
                self.store.put(
                    self._config(*run), trained_record(trained[place], judged[place], spent), trained[place].tensors
                )
            losses = [finite_or_none(loss) for loss in state.losses]
            record = {"losses": losses, "seconds": spent}
            self.store.put(self._at(run, until), record, {} if last else state.stored())
        self.count.tell(names, [key_of(self._at(run, until)) for run in chosen])

    def _reached(self, run: Run, until: int) -> int:
        """Return the last step, up to ``until``, at which a run is kept."""
        config = self._config(*run)
        return next((step for step in range(until, 0, -1) if self.store.get({**config, "until": step})), 0)

    def _losses(self, run: Run, step: int) -> tuple[float, ...]:
        losses = (self.store.get(self._at(run, step)) or {})["losses"]
        return tuple(map(or_infinite, losses))

    def _at(self, run: Run, step: int) -> dict[str, Any]:
        return {**self._config(*run), "until": step}


def _at_once(jobs: Sequence[PackJob]) -> Stage:
    if jobs:
        yield jobs
