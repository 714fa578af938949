"""What a search can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steerscope.analysis.scoring.options import MIN_EXAMPLES
from steerscope.errors import InputError
from steerscope.experiments.groundwork.carriers import CARRYING, ENGINES
from steerscope.experiments.groundwork.site_training_options import SiteTrainingOptions
from steerscope.option_types import deciding, plain_fields
from steerscope.steering.config import SCALES
from steerscope.steering.families import FAMILIES

STARTS = ("score", "depth", "spread")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(SiteTrainingOptions):
    """Options of a search.

    Those that sweeps and searches share are in
    :class:`~steerscope.experiments.groundwork.site_training_options.SiteTrainingOptions`.

    Attributes:
        budget: Minutes for the whole search, ranking included. It decides how many candidates there are, and is kept to
            about one training run; None for ``candidates`` of them however long it takes.
        candidates: Sites that are trained at, at most.
        start: Which sites these are: ``score`` (half by the ranking's score, half spread over kinds and depth, in case
            the score is wrong), ``depth`` (the lowest layers), ``spread`` (over kinds and depth alone).
        steps: Optimizer steps of a whole run.
        sets: Let the ranking's greedy set, and the kinds of the best sites at all layers, compete too.
        references: Train plain defaults for comparison: an edit after every block, and LoRA, at searched rates.
        num_ranking: Prompts that the ranking is made from.
    """

    candidates: int = 24
    start: str = "score"
    steps: int = 120
    sets: bool = True
    references: bool = True
    num_ranking: int = 192

    def __post_init__(self) -> None:
        plain_fields(self, start=STARTS, family=FAMILIES, scale=SCALES, engine=ENGINES)
        self.config_at("0.resid_post")
        if self.start not in STARTS:
            raise InputError(f"[[start]] is {self.start!r}; expected one of {', '.join(STARTS)}.")
        self.check_shared(candidates=2, steps=10, num_ranking=MIN_EXAMPLES)

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the result, as JSON-able values; the model's own record says how it was loaded."""
        return deciding(self, *CARRYING)
