"""What one training run is: everything that decides its result beside model, data and code."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from steerscope.errors import InputError
from steerscope.option_types import plain_fields
from steerscope.steering.config import SteeringConfig


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a run trains: AdamW without weight decay, linear warm-up, linear decay to zero.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples per step.
        warmup: Part of the steps in which the learning rate rises.
        clip: Largest norm of a run's gradient; longer ones are shortened to it.

    Example:
        >>> schedule = Schedule(steps=10, batch_size=4, warmup=0.2)
        >>> [schedule.factor(step) for step in (0, 1, 2, 6, 9)]
        [0.0, 0.5, 1.0, 0.5, 0.125]
    """

    steps: int = 120
    batch_size: int = 32
    warmup: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"[[{name}]] is {value!r}; expected a whole number of at least 1.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"[[warmup]] is {self.warmup}; expected a part of the steps, from 0 to below 1.")
        if not self.clip > 0:
            raise InputError(f"clip is {self.clip}; expected a positive norm (infinity clips nothing).")

    def factor(self, step: int) -> float:
        """Return the multiple of the peak learning rate in ``step`` (from 0); that of transformers' linear schedule."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return step / max(1, rising)
        return max(0.0, (self.steps - step) / max(1, self.steps - rising))


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes:
        config: The edits: sites, family, rank, positions, start; None for a method that trains weights.
        learning_rate: Its peak.
        seed: Which training examples come in which order; runs of one seed see the same batches.
    """

    config: SteeringConfig | None
    learning_rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        plain_fields(self)
        if not (0 < self.learning_rate < math.inf):
            raise InputError(f"[[learning_rate]] is {self.learning_rate!r}; expected a positive number, such as 1e-3.")
        if self.config is not None and self.config.positions == "mask":
            raise InputError(
                "positions 'mask' need a mask with every batch, which training examples do not have. Name others."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**asdict(self), "config": None if self.config is None else self.config.to_dict()}
