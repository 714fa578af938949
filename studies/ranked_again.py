"""Rank the sites of a table once more, with another draw or other output directions."""

from __future__ import annotations

from typing import Any

from steerscope import RankOptions, get_task, load_model, rank_sites
from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.site_tables import SiteTable
from steerscope.steering.config import DEFAULT_RANK


def ranked_again(table: SiteTable, *, seed: int, **changes: Any) -> Ranking:
    """Return a ranking of a table's model on its task, for an edit and a training like the table's.

    Args:
        table: The table.
        seed: Of the draw of prompts, of output directions and of sketches.
        **changes: Further options of the ranking.

    Returns:
        The ranking, made from as many prompts as the table's.

    Raises:
        InputError: The model is not there, or the table was ranked with another number of prompts.
    """
    options = RankOptions(
        seed=seed,
        rank=table.edit.rank or DEFAULT_RANK,
        num_training=table.steps * table.schedule.batch_size,
        **changes,
    )
    prompts = splits_of_task(get_task(table.task)).ranking(options.max_examples, seed)
    ranking = rank_sites(load_model(table.model.name), prompts, options, task=table.task)
    if (count := table.ranking.draw()[1]) != ranking.n_examples:
        raise InputError(f"the table of {table.name} was ranked with {count} prompts, now {ranking.n_examples}.")
    return ranking
