"""The candidates of a ranking as a reader counts them, and how the other scores order them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerscope.analysis.results import KindScore, Ranking, SiteScore
from steerscope.analysis.scoring.intervals import spearman
from steerscope.analysis.scoring.scores import DEFAULT_SCORE, all_scores
from steerscope.analysis.scoring.standing import Standing
from steerscope.reports.vocabulary import clean, is_close, ordered_kinds
from steerscope.site_kinds import kinds_written_by_branches

# Kinds that add to the stream: a fixed vector there is one and the same edit at every kind that adds at the
# same point. Which ones do depends on the layout (in parallel blocks attn_out joins mlp_out), so equal numbers
# decide, and only among these kinds.
_WRITES = frozenset(kinds_written_by_branches())


@dataclass(frozen=True)
class Candidate:
    """One row of the ranking: a site, and the kinds at which the same vector is the same edit."""

    rank: int
    site: SiteScore
    kinds: tuple[str, ...]

    @property
    def label(self) -> str:
        """Where to put the edit, ``4.mlp_out = resid_post`` where one vector has two names."""
        return f"{self.site.layer}.{joined(self.kinds)}"

    @property
    def is_merged(self) -> bool:
        """Whether several kinds are this one edit."""
        return len(self.kinds) > 1


@dataclass(frozen=True)
class KindCandidate:
    """One kind (or several that are one vector) steered at all layers."""

    rank: int
    kind: KindScore
    kinds: tuple[str, ...]

    @property
    def label(self) -> str:
        """The kinds, ``mlp_out = resid_post`` where one vector has two names."""
        return joined(self.kinds)


@dataclass(frozen=True)
class Agreement:
    """What another score says: its Spearman correlation with the default one, and where its maximum lies.

    ``spearman`` is ``None`` where the score is constant; ``best`` holds every site that reaches the maximum.
    """

    name: str
    spearman: float | None
    best: tuple[SiteScore, ...]


def joined(kinds: Sequence[str]) -> str:
    """Return kinds that are one edit as ``mlp_out = resid_post``."""
    return " = ".join(clean(kind, 24) for kind in kinds)


def _is_same_edit(first: SiteScore | KindScore, second: SiteScore | KindScore) -> bool:
    """Say whether two scores of family ``vector`` belong to one edit with two names."""
    return (
        first.family == second.family == "vector"
        and first.kind in _WRITES
        and second.kind in _WRITES
        and first.n_params == second.n_params
        and is_close(first.score, second.score)
        and is_close(first.ci_low, second.ci_low)
        and is_close(first.ci_high, second.ci_high)
    )


def candidates(ranking: Ranking) -> list[Candidate]:
    """Return the ranking's rows, best first, each distinct edit once."""
    groups: list[list[SiteScore]] = []
    vectors: dict[int, list[list[SiteScore]]] = {}
    for site in ranking.sites:
        at_layer = vectors.setdefault(site.layer, [])
        twin = next((group for group in at_layer if _is_same_edit(group[0], site)), None)
        if twin is not None:
            twin.append(site)
            continue
        groups.append([site])
        if site.family == "vector":
            at_layer.append(groups[-1])
    return [
        Candidate(rank, group[0], tuple(ordered_kinds(site.kind for site in group)))
        for rank, group in enumerate(groups, start=1)
    ]


def kind_candidates(ranking: Ranking) -> list[KindCandidate]:
    """Return the kinds steered at all layers, best first, each distinct edit once."""
    groups: list[list[KindScore]] = []
    for kind in ranking.kinds:
        twin = next((group for group in groups if _is_same_edit(group[0], kind)), None)
        if twin is None:
            groups.append([kind])
        else:
            twin.append(kind)
    return [
        KindCandidate(rank, group[0], tuple(ordered_kinds(kind.kind for kind in group)))
        for rank, group in enumerate(groups, start=1)
    ]


def standing(ranking: Ranking, site: SiteScore) -> Standing:
    """Return how a site stands to the best; a file of before knows ties alone, which may be equal or worse.

    Args:
        ranking: The ranking.
        site: One of its rows.

    Returns:
        Equal, undetermined or worse.
    """
    if site.standing in set(Standing):
        return Standing(site.standing)
    if site is ranking.sites[0]:
        return Standing.EQUAL
    return Standing.UNDETERMINED if site.ties_with_best else Standing.WORSE


def tells_the_best(ranking: Ranking) -> bool:
    """Whether two halves of the prompts agree on which sites are best, as well as the threshold asks of all sites.

    Where nothing was measured, the agreement over all sites has to do. A probability p is a correlation of 2 p - 1.

    Returns:
        Whether the best sites can be named.
    """
    found = ranking.stability
    agreement = found.top_agreement
    return found.can_tell and (agreement is None or 2 * agreement - 1 >= found.threshold)


def score_of_kinds(ranking: Ranking) -> str:
    """Return the score of kinds at all layers; of a file of before, which does not name it, from the ranking's."""
    if ranking.kind_score is not None:
        return ranking.kind_score
    needs = {score.name: score.needs for score in all_scores()}.get(ranking.score)
    return ranking.score if needs is None or needs.is_of_kernels else DEFAULT_SCORE


def main_family(ranking: Ranking) -> str:
    """Return the family the maps are drawn for: ``linear`` where there is one, else the best site's."""
    families = [site.family for site in ranking.sites]
    return "linear" if "linear" in families or not families else families[0]


def sites_of_family(ranking: Ranking, family: str) -> list[SiteScore]:
    """Return one family's sites, best first.

    Args:
        ranking: The ranking.
        family: ``vector`` or ``linear``.

    Returns:
        Rows of the ranking in its order.
    """
    return [site for site in ranking.sites if site.family == family]


def num_layers(ranking: Ranking) -> int:
    """Return the number of blocks, at least as many as the sites speak of."""
    return max(ranking.model.layers, 1 + max((site.layer for site in ranking.sites), default=0))


def prompts_learned_from(ranking: Ranking) -> int:
    """Return the number of prompts a share was learned from: half of them, the rest measures it."""
    return ranking.settings.n_fit


def agreements(ranking: Ranking) -> list[Agreement]:
    """Compare every other score with the default one over the sites of the main family.

    Scores are taken to grow with what they recommend.

    Returns:
        One entry per score that at least one site has, most agreeing first, constant ones last.
    """
    found = list(_agreements(ranking))
    return sorted(found, key=lambda a: (a.spearman is None, -(a.spearman or 0.0), a.name))


def _agreements(ranking: Ranking) -> Iterator[Agreement]:
    sites = sites_of_family(ranking, main_family(ranking))
    for name in sorted({name for site in sites for name in site.scores} - {ranking.score}):
        scored = [site for site in sites if name in site.scores]
        values = np.array([site.scores[name] for site in scored])
        rho = spearman(values, np.array([site.score for site in scored]))
        top = values.max()
        yield Agreement(name, rho, tuple(s for s, value in zip(scored, values, strict=True) if value == top))
