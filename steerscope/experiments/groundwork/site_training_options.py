"""What a sweep and a search are both told: which edit, how it is trained and tested, and what carries the work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.groundwork.carriers import CarryingOptions, check_carrying
from steerscope.option_types import LoadingOptions, require_budget, require_least, require_seed
from steerscope.steering.config import DEFAULT_RANK, SteeringConfig


@dataclass(frozen=True, kw_only=True)
class SiteTrainingOptions(CarryingOptions, LoadingOptions):
    """Options that sweeps and searches share, beside what carries the work and how the model is loaded.

    Attributes:
        family: Family of the edits; ``rank``, ``bias`` and ``scale`` as in a ``SteeringConfig``.
        steps: Optimizer steps of every run.
        batch_size: Examples per step.
        num_selection: Held-out examples that choose.
        num_test: Test examples.
        budget: Minutes; None for as long as it takes.
        seed: Of training data, order and start; the first one where there are several.
    """

    family: str = "linear"
    rank: int | None = None
    bias: bool | None = None
    scale: str = "none"
    steps: int = 80
    batch_size: int = 24
    num_selection: int = 256
    num_test: int = 512
    budget: float | None = None
    seed: int = 0

    def check_shared(self, **least: int) -> None:
        """Refuse what is out of range, or cannot carry the work.

        Args:
            **least: The least value of further fields.

        Raises:
            InputError: There is such.
        """
        require_least(self, **least, batch_size=1, num_selection=16, num_test=16)
        check_carrying(self)
        require_budget(self.budget)
        require_seed(self.seed)

    @property
    def schedule(self) -> Schedule:
        """How a run is trained."""
        return Schedule(steps=self.steps, batch_size=self.batch_size)

    @property
    def budget_seconds(self) -> float:
        """Seconds that the work may take, infinite without a limit."""
        return math.inf if self.budget is None else 60 * self.budget

    def config_at(self, *sites: str) -> SteeringConfig:
        """Return the edit at some sites."""
        return SteeringConfig(
            sites=sites, family=self.family, rank=self.rank, bias=self.bias, scale=self.scale, seed=self.seed
        )

    @property
    def counted_rank(self) -> int:
        """The rank that parameters are counted for, and a LoRA has: the edits', or the default of families without."""
        return self.config_at("0.resid_post").rank or DEFAULT_RANK
