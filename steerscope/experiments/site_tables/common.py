"""The part of a table that scores are judged on: sites that were all tested with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from steerscope.errors import InputError
from steerscope.experiments.agreement.correlations import Array
from steerscope.experiments.site_tables.table import SiteOutcome, SiteTable
from steerscope.finite import require_finite
from steerscope.sites import parse_site

# A seed is used if at least this part of the sites was tested with it too; the other sites are then left out.
MOST_SITES = 2 / 3
# Sites below which no correlation is worth a number.
LEAST_SITES = 6


@dataclass(frozen=True)
class Common:
    """Sites that were tested with the same seeds.

    Attributes:
        outcomes: Lowest first; each with these seeds alone.
        seeds: The seeds.
        num_left_out: Tested sites that some of the seeds are missing at.
    """

    outcomes: tuple[SiteOutcome, ...]
    seeds: tuple[int, ...]
    num_left_out: int

    @property
    def sites(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(str(one.site) for one in self.outcomes)

    @property
    def layers(self) -> NDArray[np.int64]:
        """Their layers ``site``."""
        return np.array([one.site.layer for one in self.outcomes])

    @property
    def losses(self) -> Array:
        """Test losses ``site seed``, nats; infinite where a run diverged."""
        return np.array([one.losses for one in self.outcomes])

    @property
    def accuracies(self) -> Array:
        """Test accuracies ``site seed``."""
        return np.array([one.accuracies for one in self.outcomes])


def common_outcomes(table: SiteTable) -> Common:
    """Return the sites of a table that were tested with the same seeds, with as many seeds as most sites have.

    Raises:
        InputError: Fewer than six.
    """
    found = table.outcomes()
    by_use = sorted(table.seeds, key=lambda seed: (-sum(seed in one.seeds for one in found), seed))
    for num in range(len(by_use), 0, -1):
        seeds = tuple(sorted(by_use[:num]))
        kept = [one for one in found if set(seeds) <= set(one.seeds)]
        if len(kept) >= MOST_SITES * len(found):
            break
    if len(kept) < LEAST_SITES:
        raise InputError(
            f"the table of {table.name} has {len(kept)} tested sites; at least {LEAST_SITES} are needed to judge a "
            "score. Let the sweep go on."
        )
    return Common(tuple(_with_seeds(one, seeds) for one in kept), seeds, len(found) - len(kept))


def score_array(name: str, scores: Mapping[str, float], sites: tuple[str, ...]) -> Array:
    """Return a score's values ``site`` in the order of some sites.

    Args:
        name: Its name, for messages.
        scores: By site, in any of a site's spellings; higher is better. Other sites are ignored.
        sites: The sites.

    Returns:
        Finite values ``(site)``.

    Raises:
        InputError: A site has no value, or one that is not finite.
    """
    known = {str(parse_site(site)): value for site, value in scores.items()}
    if missing := [site for site in sites if site not in known]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"score {name!r} has no value for {', '.join(missing[:3])}{more}; expected one for each of the table's "
            f"{len(sites)} sites."
        )
    for site in sites:
        value = known[site]
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise InputError(f"score {name!r} of {site} is {value!r}; expected a number, higher for a better site.")
        require_finite(f"score {name!r} of {site}", float(value), advice="Give every site a finite number.")
    return np.array([float(known[site]) for site in sites])


def _with_seeds(one: SiteOutcome, seeds: tuple[int, ...]) -> SiteOutcome:
    places = [one.seeds.index(seed) for seed in seeds]
    return replace(
        one,
        losses=tuple(one.losses[i] for i in places),
        accuracies=tuple(one.accuracies[i] for i in places),
        selection_losses=tuple(one.selection_losses[i] for i in places),
        seeds=seeds,
    )
