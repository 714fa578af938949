"""The scores beside a sweep's outcomes: a ranking of its model, made once, and those of an earlier table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.stopwatch import StageProgress
from steerscope.experiments.groundwork.kept_ranking import kept_ranking
from steerscope.experiments.groundwork.splits import DataSplits
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.experiments.sweeping.options import SweepOptions
from steerscope.models.load import LoadedModel


def with_scores_of(earlier: SiteTable, table: SiteTable) -> SiteTable:
    """Return a table with the scores that an earlier one of the same sweep had, if they cover its sites.

    Args:
        earlier: Of the same sweep.
        table: With all that is trained by now.

    Returns:
        The table, with scores or as it was.
    """
    trained = {str(one.site) for one in table.outcomes()}
    if not all(trained <= set(own) for own in earlier.scores.values()):
        return table
    return replace(table, scores=earlier.scores, ranking=earlier.ranking)


def sweep_ranking(
    loaded: LoadedModel,
    splits: DataSplits,
    options: SweepOptions,
    path: Path,
    progress: StageProgress | None,
) -> Ranking:
    """Rank all sites with every score that is computed from kernels, from training examples.

    Args:
        loaded: The model.
        splits: Where examples come from.
        options: Of the sweep.
        path: Where the ranking is kept.
        progress: Called as work goes on.

    Returns:
        The ranking, read back from the file where an earlier start of the sweep finished it.
    """
    seen = options.steps * options.batch_size
    wanted = RankOptions(extra=("spectrum",), seed=options.seed, rank=options.counted_rank, num_training=seen)
    return kept_ranking(loaded, splits, path, wanted, progress)
