"""Scores of a ranking, beside the trained outcomes of the same sites."""

from __future__ import annotations

from dataclasses import replace

from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.experiments.site_tables.table_parts import TableRanking, TableRankingSettings


def with_scores(table: SiteTable, ranking: Ranking) -> SiteTable:
    """Return a table with all scores of a ranking, of the sites that it trained.

    Args:
        table: The outcomes.
        ranking: Of the same model, from training examples of the same task.

    Returns:
        A copy of the table.

    Raises:
        InputError: The ranking is of another model or task, or lacks a site.
    """
    for name, ours, theirs in (
        ("model", table.model.sha256, ranking.model.sha256),
        ("task", table.task, ranking.task),
    ):
        if ours != theirs:
            raise InputError(f"the ranking is of another {name} than the table ({theirs}; expected {ours}).")
    ranked = {site.name: site.scores for site in ranking.sites if site.family == table.edit.ranked_as}
    trained = [str(one.site) for one in table.outcomes()]
    if missing := [name for name in trained if name not in ranked]:
        raise InputError(f"the ranking has no {', '.join(missing[:3])}. Rank all kinds of site.")
    names = list(ranked[trained[0]])
    return replace(
        table,
        scores={name: {site: ranked[site][name] for site in trained} for name in names},
        ranking=TableRanking(
            examples=ranking.n_examples,
            seed=ranking.seed,
            seconds=round(sum(ranking.timing.values()), 1),
            settings=TableRankingSettings(
                extra=ranking.settings.extra,
                num_training=ranking.settings.num_training,
                num_probes=ranking.outputs.n_probes,
            ),
            versions=ranking.versions,
        ),
    )
