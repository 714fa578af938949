"""How a site table was made: the edit, its schedule, the data, the ranking beside it, and what the runs cost.

What is ``None`` a file does not say: one of before, or one that other programs made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from steerscope.errors import InputError
from steerscope.records import Count


@dataclass(frozen=True)
class TrainedEdit:
    """The edit that was trained at every site: the fields of a ``SteeringConfig`` but sites and seed.

    Attributes:
        family: ``linear``, ``vector``, ...
        rank: Rank of its linear map, or ``None`` for families without one.
        bias: Whether it adds a vector; ``None`` for families that have no choice.
        scale: ``none``, or ``rms``: what is read is divided by its root mean square.
        positions: At which tokens it is made.
        activation: Of the nonlinear family.
        start: ``no-op`` or ``published``.
        dtype: Data type of its parameters.
    """

    family: str
    rank: int | None = None
    bias: bool | None = None
    scale: str | None = None
    positions: str | None = None
    activation: str | None = None
    start: str | None = None
    dtype: str | None = None

    @property
    def ranked_as(self) -> str:
        """The family of a ranking that stands for the trained one: rankings know vectors and linear edits."""
        return "vector" if self.family == "vector" else "linear"


@dataclass(frozen=True)
class TableSchedule:
    """How every run was trained, but for those of twice as many steps.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples per step.
        warmup: Part of the steps in which the learning rate rises.
        clip: Largest norm of a run's gradient.
    """

    steps: Count
    batch_size: Count
    warmup: float | None = None
    clip: float | None = None


@dataclass(frozen=True)
class TableData:
    """The examples.

    Attributes:
        test: Hash of the test examples.
        num_test: How many they are.
        num_selection: How many selection examples there are.
        selection: Hash of them.
        train: Hash of the training examples of the first seed.
        example: One test example, prompt and completion.
    """

    test: str
    num_test: Count
    num_selection: Count
    selection: str | None = None
    train: str | None = None
    example: str = ""


@dataclass(frozen=True)
class TableRankingSettings:
    """What the ranking beside a table was told.

    Attributes:
        extra: What its costly scores need: ``spectrum``, ``step``.
        num_training: Examples that training was taken to see.
        num_probes: Output directions per prompt.
    """

    extra: tuple[str, ...] = ()
    num_training: Count | None = None
    num_probes: Count | None = None


@dataclass(frozen=True)
class TableRanking:
    """How the ranking was made whose scores stand in a table.

    Attributes:
        examples: Prompts.
        seed: Its seed.
        seconds: What it took.
        settings: What it was told.
        versions: Package versions.
    """

    examples: Count | None = None
    seed: int | None = None
    seconds: float | None = None
    settings: TableRankingSettings = field(default_factory=TableRankingSettings)
    versions: dict[str, str] = field(default_factory=dict)

    def draw(self) -> tuple[int, int]:
        """Return the seed with which its prompts were drawn, and how many they are.

        Raises:
            InputError: The table was not ranked, or does not say.
        """
        if self.seed is None or self.examples is None:
            raise InputError("the table does not say which prompts it was ranked with. Sweep again, with its scores.")
        return self.seed, self.examples


@dataclass(frozen=True)
class TableCost:
    """What all runs together cost.

    Attributes:
        runs: How many there are.
        seconds: Of training.
        operations: Floating-point operations of the blocks' linear maps in it: a lower bound, so that its ratio to the
            seconds is a machine's speed at this work.
    """

    runs: Count | None = None
    seconds: float | None = None
    operations: float | None = None
