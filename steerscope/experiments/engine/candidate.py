"""What a sweep trains and what it needs for it: candidates, examples, a store; and what training one came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from steerscope.experiments.engine.held_out import HeldOut
from steerscope.experiments.engine.pack import Pack
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.finite import finite_or_none
from steerscope.sites import parse_site
from steerscope.steering.config import SteeringConfig

# A candidate with a learning rate and a seed.
Run = tuple["Candidate", float, int]


class Store(Protocol):
    """Where runs are kept, by everything that decides their result."""

    def get(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is kept of a run, or None."""

    def put(self, config: Mapping[str, Any], record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Save a run.

        Args:
            config: Everything that the run depends on; its hash is the key.
            record: What the run came to: losses in nats, steps, seconds.
            weights: The trained tensors of the edit by name; empty where only the numbers are worth keeping.
        """

    def weights(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors that were kept with a run."""


class SweepData(Protocol):
    """The examples of a sweep."""

    def rows(self, seed: int) -> Sequence[SupervisedSequence]:
        """Return a seed's training sequences in the order of training, ``steps * batch_size`` of them."""

    def held_out(self, part: str) -> HeldOut:
        """Return the examples of ``selection`` or ``test``."""

    def content_hash(self, part: str, seed: int = 0) -> str:
        """Return a hash of the examples of a part (``train`` of a seed, ``selection``, ``test``).

        Args:
            part: ``train``, ``selection`` or ``test``.
            seed: Of the training examples; the other parts are the same for every seed.

        Returns:
            A hexadecimal digest; equal parts have equal ones, on every machine.
        """


@dataclass(frozen=True)
class Candidate:
    """Something to train: edits, or a method that trains weights.

    Attributes:
        name: What it is called in results.
        config: Its edits; their seed is replaced by each run's.
        start: Place on the grid of learning rates where the search begins.
        group: Candidates of one group tend to want one rate: the next search begins where the last one ended.
        build: Makes a pack of one, for a method that is not an edit, and the function that removes it from the model.
    """

    name: str
    config: SteeringConfig | None
    start: int
    group: str
    build: Callable[[float, int], tuple[Pack, Callable[[], object]]] | None = None

    @property
    def first_block(self) -> int:
        """The block at which its runs enter."""
        return -1 if self.config is None else min(parse_site(name).first_block for name in self.config.sites)


@dataclass(frozen=True)
class Outcome:
    """What training a candidate came to.

    Attributes:
        method: Its name.
        learning_rate: The chosen rate; ``interior`` whether both neighbours on the grid were tried and are worse.
        tried: Selection loss by learning rate.
        losses: Test loss per seed, in nats; infinite where the run diverged.
        accuracies: Test accuracy per seed.
        seconds: Training time of every run, searches included; of a pack its share.
    """

    method: str
    learning_rate: float
    interior: bool
    tried: dict[str, float]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values; an infinite loss is written as ``None``."""
        found = asdict(self)
        found["losses"] = [finite_or_none(v) for v in self.losses]
        found["tried"] = {k: finite_or_none(v) for k, v in self.tried.items()}
        return found


def by_floor(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return candidates grouped by the block at which their runs enter, lowest first."""
    floors: dict[int, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda one: one.first_block):
        floors.setdefault(one.first_block, []).append(one)
    return list(floors.values())
