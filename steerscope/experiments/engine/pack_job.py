"""What is done with the runs of one pack as a job: by this process, or by another machine that sends back records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steerscope.errors import InputError
from steerscope.experiments.engine.candidate import Run, Store
from steerscope.experiments.engine.run_count import RunCount
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.store import key_of

# A record of a store: what it depends on, what it says, and the trained tensors.
Kept = tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """What is done with the runs of one pack; can be sent to another machine.

    Attributes:
        what: ``train``, ``test``, or ``advance``.
        runs: Candidate, learning rate and seed of each.
        schedule: How runs are trained.
        begun: For ``advance``, the step that they are at.
        until: For ``advance``, the step that they go on to.
    """

    what: str
    runs: tuple[Run, ...]
    schedule: Schedule
    begun: int = 0
    until: int = 0


@dataclass
class PackJob:
    """A job of one pack.

    Attributes:
        store: Where runs are kept.
        gives: What the records depend on that are there when it is done.
        needs: Those of the records that it reads.
        task: What it is.
        work: Does it here.
        count: Counts runs for the progress.
        keys: Keys of the runs that it is counted as.
    """

    store: Store
    gives: tuple[dict[str, Any], ...]
    needs: tuple[dict[str, Any], ...]
    task: Task
    work: Callable[[], object]
    count: RunCount
    keys: tuple[str, ...]
    _is_done: bool = field(default=False, repr=False)
    _was_open: bool = field(default=False, repr=False)

    @property
    def name(self) -> str:
        """The same in every process that would do the same."""
        return f"{self.task.what}-{key_of({'gives': [key_of(config) for config in self.gives]})}"

    def is_done(self) -> bool:
        """Say whether all its records are kept."""
        self._is_done = self._is_done or all(self.store.get(config) is not None for config in self.gives)
        self._was_open = self._was_open or not self._is_done
        return self._is_done

    def do(self) -> None:
        """Do it here."""
        self.work()

    def skip(self) -> None:
        """Count it as done: as kept before, unless another process did it while this one ran."""
        if self._was_open:
            self.count.tell("", self.keys)
        else:
            self.count.keep(self.keys)

    def stays(self) -> bool:
        """Say whether it trains weights of this process's model."""
        return any(one.build is not None for one, _, _ in self.task.runs)

    def sent(self) -> tuple[Task, list[Kept]]:
        """Return the task, with the records that it reads."""
        return self.task, [(config, self.store.get(config) or {}, self.store.weights(config)) for config in self.needs]

    def take(self, result: Sequence[Kept]) -> None:
        """Keep the records that another machine sent.

        Raises:
            InputError: They are of other runs than were asked for: the machine has another model, or other data.
        """
        wanted, found = {key_of(config) for config in self.gives}, {key_of(config) for config, _, _ in result}
        if not wanted <= found:
            raise InputError(
                "a machine sent back runs of another model or other examples than this one's. Give all machines the "
                "same files, and the same versions of what reads them."
            )
        for config, record, weights in result:
            if self.store.get(config) is None:
                self.store.put(config, record, weights)
        self.count.tell("", self.keys)


class MemoryStore:
    """A store that lasts as long as the task of one pack."""

    def __init__(self, kept: Sequence[Kept] = ()) -> None:
        self._kept = {key_of(config): (config, record, weights) for config, record, weights in kept}
        self._given = set(self._kept)

    def get(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is kept of a run, or None."""
        return self._kept[key_of(config)][1] if key_of(config) in self._kept else None

    def put(self, config: Mapping[str, Any], record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Keep a run.

        Args:
            config: Everything that the run depends on; its hash is the key.
            record: What the run came to.
            weights: The trained tensors of the edit by name.
        """
        own = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        self._kept[key_of(config)] = dict(config), dict(record), own

    def weights(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors that were kept with a run."""
        return self._kept[key_of(config)][2] if key_of(config) in self._kept else {}

    def made(self) -> list[Kept]:
        """Return what was put since the store was made."""
        return [kept for key, kept in self._kept.items() if key not in self._given]
