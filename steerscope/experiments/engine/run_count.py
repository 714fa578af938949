"""How many runs are done, of how many: for the progress, and what it says of the time that is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from steerscope.analysis.stopwatch import StageProgress


@dataclass
class RunCount:
    """Counts runs, of one sweep or of several that are one piece of work.

    The time that is left is foreseen from the runs that are told, so runs that were kept before are never told as work:
    until the first run that is trained they are where the count begins, and after it they leave the total. A run that
    is asked for twice, by the search for a rate and by what trains with the chosen one, counts once.

    Attributes:
        progress: What is told.
        done: Runs that are done.
        total: Runs in all.
    """

    progress: StageProgress | None = None
    done: int = 0
    total: int = 0
    _has_begun: bool = False
    _counted: set[str] = field(default_factory=set)

    def expect(self, runs: int) -> None:
        """Begin to count, with so many runs ahead."""
        self.done, self.total, self._has_begun, self._counted = 0, runs, False, set()

    def more(self, runs: int) -> None:
        """Expect so many runs more than before."""
        self.total += runs

    def ask(self, runs: int) -> None:
        """Expect at least so many runs after those that are done."""
        self.total = max(self.total, self.done + runs)

    def keep(self, keys: Iterable[str]) -> None:
        """Count runs that were kept before, by their keys: they took no time."""
        runs = self._new(keys)
        if not self._has_begun:
            self.done += runs
            self.total = max(self.total, self.done)
        elif runs:
            self.total = max(self.total - runs, self.done)
            self._tell("")

    def tell(self, names: str, keys: Iterable[str] = ()) -> None:
        """Count runs that were trained, and tell.

        Args:
            names: What is being done.
            keys: Keys of those that were trained since the last call; none where work on them begins.
        """
        self._has_begun = True
        self.done += self._new(keys)
        self.total = max(self.total, self.done)
        self._tell(names)

    def _new(self, keys: Iterable[str]) -> int:
        """Return how many of the runs were not counted yet."""
        new = set(keys) - self._counted
        self._counted |= new
        return len(new)

    def _tell(self, names: str) -> None:
        if self.progress is not None and self.total:
            self.progress(names, self.done, self.total)
