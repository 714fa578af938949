"""What a validation can be told: which sites, how long they are trained, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerscope.analysis.scoring.options import MIN_EXAMPLES
from steerscope.errors import InputError
from steerscope.experiments.engine.spec import Schedule
from steerscope.installed import require
from steerscope.models.site_map import SiteMap
from steerscope.option_types import LoadingOptions, deciding, plain_fields, require_least, require_seed
from steerscope.sites import Site, SiteKind

MIN_SITES = 6


@dataclass(frozen=True)
class ValidateOptions(LoadingOptions):
    """Options of a validation; the model is loaded in float32 or float64.

    Attributes:
        sites: How many sites to train at, spread over depth and kinds, or their names.
        seeds: Training seeds: fresh training data, start and order each.
        rank: Rank of the linear edits, and of LoRA.
        steps: Optimizer steps of every run.
        batch_size: Examples per step.
        num_ranking: Prompts the ranking is made from.
        num_selection: Held-out prompts that choose learning rates.
        num_test: Test prompts.
        references: Train full fine-tuning, LoRA and the greedy set as well.
        seed: Seed of the ranking, of the bootstrap and of the first training run.
    """

    sites: int | tuple[str, ...] = 12
    seeds: int = 2
    rank: int = 8
    steps: int = 32
    batch_size: int = 16
    num_ranking: int = 192
    num_selection: int = 128
    num_test: int = 256
    references: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        plain_fields(self)

    @property
    def schedule(self) -> Schedule:
        """How runs are trained."""
        return Schedule(steps=self.steps, batch_size=self.batch_size)

    @property
    def all_seeds(self) -> range:
        """The training seeds."""
        return range(self.seed, self.seed + self.seeds)

    def check(self) -> None:
        """Refuse options that cannot work.

        Raises:
            InputError: A number out of range, too few sites for a rank correlation, or references without PEFT.
        """
        count = self.sites if isinstance(self.sites, int) else len(self.sites)
        if count < MIN_SITES:
            raise InputError(
                f"[[sites]] asks for {count}; expected at least {MIN_SITES}: fewer make no rank correlation."
            )
        least = {"seeds": 1, "rank": 1, "steps": 1, "batch_size": 1, "num_ranking": MIN_EXAMPLES}
        require_least(self, **least, num_selection=16, num_test=16)
        require_seed(self.seed)
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"[[dtype]] is {self.dtype!r}; validation trains in float32 or float64. Name one of them.")
        if self.references:
            require("train", "a LoRA beside the edits (without it: [[references=False]])")

    def as_dict(self) -> dict[str, Any]:
        """Return what decides a validation beside its model, as JSON-able values."""
        return deciding(self)


def choose_sites(site_map: SiteMap, wanted: int | Sequence[str]) -> tuple[Site, ...]:
    """Return the sites to train at, lowest first.

    A number spreads them over depth and kinds at once: depths are equidistant from the first block to the last
    and kinds take turns in an order that puts unlike neighbours side by side, so that neither depth nor kind
    stands for the other. ``resid_pre`` is left out: above the first block it is the ``resid_post`` below.

    Args:
        site_map: The model's sites.
        wanted: How many sites, or their names.

    Returns:
        Sites in the order in which the model computes them.

    Raises:
        InputError: An unknown site, the same site twice, or more sites than there are.
    """
    if not isinstance(wanted, int):
        return site_map.resolve_each(wanted)
    turns = [kind for kind in _TURNS if kind in site_map.description.kinds]
    last = len(site_map.blocks) - 1
    if wanted > len(turns) * (last + 1):
        raise InputError(
            f"asked for {wanted} sites; this model has {len(turns) * (last + 1)} (kinds times layers). Ask for fewer."
        )
    found: list[Site] = []
    for index in range(wanted):
        layer = round(index * last / max(wanted - 1, 1))
        # The next kind in turn that this layer, or the nearest one, still has free.
        nearest = sorted(range(last + 1), key=lambda other, layer=layer: abs(other - layer))  # type: ignore[misc]
        free = (Site(other, turns[(index + k) % len(turns)]) for other in nearest for k in range(len(turns)))
        found.append(next(site for site in free if site not in found))
    return tuple(sorted(found, key=lambda site: (site.layer, site.kind.order)))


_TURNS = (
    SiteKind.RESID_POST,
    SiteKind.ATTN_HEADS,
    SiteKind.MLP_OUT,
    SiteKind.RESID_MID,
    SiteKind.MLP_HIDDEN,
    SiteKind.ATTN_OUT,
    SiteKind.MLP_IN,
)
