"""Which sites, sets and learning rates a search begins with."""

from __future__ import annotations

from steerscope.analysis.results import Ranking, SiteScore
from steerscope.experiments.engine.candidate import Candidate
from steerscope.experiments.engine.rate_grid import rate
from steerscope.experiments.validation.options import choose_sites
from steerscope.models.site_map import SiteMap

# Most sites of the greedy set that compete as one edit.
SET = 3


def chosen_sites(ranking: Ranking, count: int, start: str, site_map: SiteMap) -> list[str]:
    """Return the sites that a search trains at, best first by what orders them.

    Args:
        ranking: Of all sites.
        count: How many.
        start: ``score``: every second one by the ranking's score, with no two neighbours of a kind among them; the rest
            is spread over kinds and depth, in case the score is wrong. ``depth``: the lowest layers. ``spread``: over
            kinds and depth alone.
        site_map: The model's sites.

    Returns:
        Names of sites, each once.
    """
    linear = [site for site in ranking.sites if site.family == "linear"]
    count = min(count, len(linear))
    if start == "depth":
        return [site.name for site in sorted(linear, key=lambda site: site.layer)][:count]
    wide = [str(site) for site in choose_sites(site_map, count if start == "spread" else count // 2)]
    if start == "spread":
        return wide
    best: list[SiteScore] = []
    for site in linear:
        if len(best) < count - len(wide) and not any(_are_neighbours(site, other) for other in best):
            best.append(site)
    found = list(dict.fromkeys([site.name for site in best] + wide))
    rest = [site.name for site in linear if site.name not in found]
    return (found + rest)[:count]


def sets_of(ranking: Ranking, best: str, site_map: SiteMap) -> list[tuple[str, ...]]:
    """Return edits at several sites that compete with single ones: the head of the greedy set, and a kind everywhere.

    Args:
        ranking: With its greedy set.
        best: The best single site; its kind at all layers competes.
        site_map: The model's sites.

    Returns:
        Names of the sites of each set.
    """
    kind = best.split(".", 1)[1]
    every = tuple(f"{layer}.{kind}" for layer in range(len(site_map.blocks)))
    greedy = tuple(f"{step.layer}.{step.kind}" for step in ranking.greedy[:SET])
    return [own for own in (greedy, every) if len(own) > 1]


def rates_of(one: Candidate) -> list[float]:
    """Return the learning rates that a candidate begins with: three decades, 1e-3 to 1e-1 for a start at 3e-3.

    Models differ by more than a half decade in the rate they want; the finish fills in the neighbours of the best.
    """
    return [rate(one.start + step) for step in (1, -1, 3)]


def _are_neighbours(site: SiteScore, other: SiteScore) -> bool:
    return site.kind == other.kind and abs(site.layer - other.layer) <= 1
