"""What a sweep can be told: which sites, which edit, how long, how often, and for how many minutes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from steerscope.analysis.theory.common import spread
from steerscope.errors import InputError
from steerscope.experiments.carrying.shard import AUTO, Shard, chosen_shard
from steerscope.experiments.engine.spec import RunSpec
from steerscope.experiments.groundwork.carriers import CARRYING, ENGINES, LOCAL
from steerscope.experiments.groundwork.site_training_options import SiteTrainingOptions
from steerscope.models.site_map import SiteMap
from steerscope.option_types import deciding, plain_fields
from steerscope.sites import Site, SiteKind
from steerscope.steering.config import SCALES
from steerscope.steering.families import FAMILIES

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class SweepOptions(SiteTrainingOptions):
    """Options of a sweep.

    Those that sweeps and searches share are in
    :class:`~steerscope.experiments.groundwork.site_training_options.SiteTrainingOptions`.

    Attributes:
        sites: ``all``, names, or a number: so many at least, all kinds of evenly spread layers together.
        rates: Learning rates to choose among by selection loss; none for a search on a grid of half decades until the
            best one is interior.
        tune_layers: Of every kind, the rates of so many sites are chosen, at evenly spread layers; the others take
            the rate of the nearest of them. None: of all.
        seeds: Training seeds: fresh training data, order and start each.
        longer: Sites, spread evenly, that are trained for twice as many steps too (with the first seed, at the chosen
            rate): whether more training would order sites otherwise.
        scores: Rank all sites at the end, and keep every score of the trained ones in the table.
        budget: Minutes, None without a limit: no training is begun later; what is finished is kept.
        pack_size: Most runs trained together, None to fit the machine. It changes no result.
        shard: ``i/n`` for one of n processes that share the folder, on one machine or many, so that every run is done
            once; ``auto`` for what torchrun or Slurm says. None for one process.

    Example:
        >>> options = SweepOptions(sites=("3.mlp_out", "5.resid_post"), rates=(1e-3, 1e-2), seeds=2)
        >>> options.rates, options.steps * options.batch_size
        ((0.001, 0.01), 1920)
    """

    sites: int | tuple[str, ...] | str = 48
    rates: tuple[float, ...] = ()
    tune_layers: int | None = None
    seeds: int = 3
    longer: int = 12
    scores: bool = True
    pack_size: int | None = None
    shard: str | None = None

    def __post_init__(self) -> None:
        rates = self.rates if isinstance(self.rates, tuple | list) else (self.rates,)
        object.__setattr__(self, "rates", ())  # numbers, which plain_fields takes for names
        plain_fields(self, family=FAMILIES, scale=SCALES, engine=ENGINES)
        edit = self.config_at("0.resid_post")
        for rate in rates:
            if not isinstance(rate, Real) or not 0 < rate < math.inf:
                raise InputError(f"[[rates]] has {rate!r}; expected positive numbers, such as 1e-3.")
        object.__setattr__(self, "rates", tuple(float(RunSpec(edit, r).learning_rate) for r in rates))
        self.check_shared(seeds=1, steps=4, longer=0, tune_layers=1, pack_size=1)
        if self.chosen_shard is not None and self.engine != LOCAL:
            raise InputError("[[shard]] and [[engine='ray']] exclude each other: Ray shares the work itself.")
        if isinstance(self.sites, int) and self.sites < 1:
            raise InputError(f"[[sites]] asks for {self.sites}; expected at least 1, names, or 'all'.")

    @property
    def chosen_shard(self) -> Shard | None:
        """Which of several processes this one is, if it is; of a Ray cluster only if it is told so, to be refused."""
        return None if self.engine != LOCAL and self.shard == AUTO else chosen_shard(self.shard)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The training seeds."""
        return tuple(range(self.seed, self.seed + self.seeds))

    def as_dict(self) -> dict[str, Any]:
        """Return what decides results, as JSON-able values; the model's own record says how it was loaded."""
        return deciding(self, "scores", "budget", "pack_size", "shard", *CARRYING)


def spread_sites(site_map: SiteMap, wanted: int | tuple[str, ...] | str) -> tuple[Site, ...]:
    """Return the sites of a sweep, lowest first.

    ``resid_pre`` is only taken by name: above the first block it is the ``resid_post`` below.

    Args:
        site_map: Of the model.
        wanted: ``all``; names; or a number: all kinds of as many evenly spread layers as it takes.

    Returns:
        Sites, each once.

    Raises:
        InputError: An unknown site, the same site twice, or more sites than there are.
    """
    kinds = [kind for kind in site_map.description.kinds if kind is not SiteKind.RESID_PRE]
    layers = len(site_map.blocks)
    wanted = ALL if wanted == (ALL,) else (wanted,) if isinstance(wanted, str) and wanted != ALL else wanted
    if isinstance(wanted, tuple):
        return site_map.resolve_each(wanted)
    count = layers if isinstance(wanted, str) else -(-wanted // len(kinds))
    if count > layers:
        raise InputError(
            f"asked for {wanted} sites; this model has {len(kinds) * layers} (kinds times layers). Ask for fewer."
        )
    return tuple(Site(layer, kind) for layer in spread(layers, count) for kind in sorted(kinds, key=lambda k: k.order))
