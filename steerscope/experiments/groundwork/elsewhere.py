"""Packs of a sweep or a search on another machine: what is sent there, and what does them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from steerscope.experiments.engine.pack_job import Kept, MemoryStore, Task
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.staged import StagedSweep
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import DataSplits
from steerscope.models.load import LoadedModel


@dataclass(frozen=True)
class Sent:
    """A model in memory that is sent itself, and not loaded by its name."""

    loaded: LoadedModel

    def __call__(self) -> LoadedModel:
        """Return it."""
        return self.loaded


@dataclass(frozen=True)
class Elsewhere:
    """What another machine needs, to be sent there once; calling it gives what does packs.

    Attributes:
        load: Loads the model there.
        splits: Where examples come from.
        num_selection: Examples that choose learning rates.
        num_test: Test examples.
        scales: Of what sites read, for edits with ``scale="rms"``.
        threads: Threads of torch: with another number sums are rounded otherwise.
    """

    load: Callable[[], LoadedModel]
    splits: DataSplits
    num_selection: int
    num_test: int
    scales: Mapping[str, float]
    threads: int

    def __call__(self) -> PackWorker:
        """Load the model, and return what does packs with it."""
        torch.set_num_threads(self.threads)
        return PackWorker(self, self.load())


@dataclass
class PackWorker:
    """Does packs, one after the other, with a model that stays in memory."""

    told: Elsewhere
    loaded: LoadedModel
    _sweeps: dict[Schedule, StagedSweep] = field(default_factory=dict)

    def __call__(self, sent: tuple[Task, Sequence[Kept]]) -> list[Kept]:
        """Do one pack.

        Args:
            sent: What is to be done, and the records that it reads.

        Returns:
            The records that it made.
        """
        task, kept = sent
        store = MemoryStore(kept)
        sweep = self._sweep(task.schedule)
        sweep.store = store
        sweep.do(task)
        return store.made()

    def _sweep(self, schedule: Schedule) -> StagedSweep:
        if schedule not in self._sweeps:
            told = self.told
            data = SplitData(self.loaded, told.splits, schedule, told.num_selection, told.num_test)
            self._sweeps[schedule] = StagedSweep(self.loaded, data, schedule, MemoryStore(), told.scales)
        return self._sweeps[schedule]
