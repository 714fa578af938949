"""What a search can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steerscope.analysis.scoring.options import MIN_EXAMPLES
from steerscope.errors import InputError
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.groundwork.carriers import CARRYING, ENGINES, LOCAL, check_carrying
from steerscope.option_types import deciding, plain_fields, require_budget, require_least, require_seed
from steerscope.steering.config import DEFAULT_RANK, SCALES, SteeringConfig
from steerscope.steering.families import FAMILIES

STARTS = ("score", "depth", "spread")


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        budget: Minutes for the whole search, ranking included. It decides how many candidates there are, and is kept to
            about one training run; None for ``candidates`` of them however long it takes.
        candidates: Sites that are trained at, at most.
        start: Which sites these are: ``score`` (half by the ranking's score, half spread over kinds and depth, in case
            the score is wrong), ``depth`` (the lowest layers), ``spread`` (over kinds and depth alone).
        family: Family of the edits; ``rank``, ``bias`` and ``scale`` as in a ``SteeringConfig``.
        steps: Optimizer steps of a whole run.
        batch_size: Examples per step.
        sets: Let the ranking's greedy set, and the kinds of the best sites at all layers, compete too.
        references: Train plain defaults for comparison: an edit after every block, and LoRA, at searched rates.
        num_ranking: Prompts that the ranking is made from.
        num_selection: Held-out examples that choose.
        num_test: Test examples.
        engine: What trains: ``local``, this process; ``ray``, a Ray cluster. The ranking, LoRA and the tests stay here.
        address: Of the cluster; None for one of this machine, which ends with the search.
        num_cpus: CPUs (and threads) of one process of the cluster; None for as many as this process has threads.
        num_gpus: Its GPUs, which may be a fraction; None for one if the model is on a GPU.
        seed: Of the ranking, the training data, and the start of runs.
        device: Where a model that is given by its name is loaded.
        dtype: Its data type.
        revision: Branch, tag or commit of a Hugging Face name.
        trust_remote_code: Run code that comes with the model.
    """

    budget: float | None = None
    candidates: int = 24
    start: str = "score"
    family: str = "linear"
    rank: int | None = None
    bias: bool | None = None
    scale: str = "none"
    steps: int = 120
    batch_size: int = 24
    sets: bool = True
    references: bool = True
    num_ranking: int = 192
    num_selection: int = 256
    num_test: int = 512
    engine: str = LOCAL
    address: str | None = None
    num_cpus: int | None = None
    num_gpus: float | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        plain_fields(self, start=STARTS, family=FAMILIES, scale=SCALES, engine=ENGINES)
        self.config_at("0.resid_post")
        least = {"candidates": 2, "steps": 10, "batch_size": 1, "num_ranking": MIN_EXAMPLES}
        require_least(self, **least, num_selection=16, num_test=16)
        if self.start not in STARTS:
            raise InputError(f"[[start]] is {self.start!r}; expected one of {', '.join(STARTS)}.")
        check_carrying(self)
        require_budget(self.budget)
        require_seed(self.seed)

    @property
    def schedule(self) -> Schedule:
        """How a whole run is trained."""
        return Schedule(steps=self.steps, batch_size=self.batch_size)

    def config_at(self, *sites: str) -> SteeringConfig:
        """Return the edit at some sites."""
        return SteeringConfig(
            sites=sites, family=self.family, rank=self.rank, bias=self.bias, scale=self.scale, seed=self.seed
        )

    @property
    def counted_rank(self) -> int:
        """The rank that parameters are counted for, and a LoRA has: the edits', or the default of families without."""
        return self.config_at("0.resid_post").rank or DEFAULT_RANK

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the result, as JSON-able values; the model's own record says how it was loaded."""
        return deciding(self, *CARRYING)
