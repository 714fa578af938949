"""A ranking that is made once for a folder, and found there again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steerscope.analysis.provenance import RECIPE, content_hash, model_key
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.scores import Needs, ranking_scores
from steerscope.analysis.stopwatch import StageProgress
from steerscope.errors import InputError
from steerscope.experiments.groundwork.splits import DataSplits
from steerscope.files import told
from steerscope.models.load import LoadedModel


def kept_ranking(
    loaded: LoadedModel,
    splits: DataSplits,
    path: Path,
    options: RankOptions,
    progress: StageProgress | None = None,
) -> Ranking:
    """Return the ranking of all sites from a task's training examples: the one that is kept, or a new one, kept then.

    Args:
        loaded: The model.
        splits: Where examples come from.
        path: The file.
        options: How to rank; its seed draws the examples too.
        progress: Called as work goes on.

    Returns:
        The ranking, which is also in the file.

    Raises:
        InputError: The kept one was made with other options or data.

    Cost: that of a ranking, unless it is there.
    """
    examples = splits.ranking(options.max_examples, options.seed)
    data = content_hash(examples, ordered=False)
    asked = {
        "data": data,
        "model": model_key(loaded.identity),
        "[[seed]]": options.seed,
        "[[rank]]": options.rank,
        "[[num_ranking]]": options.max_examples,
        "version": RECIPE,
    }
    if path.exists():
        found = Ranking.load(path)
        kept_as = found.settings
        has = {
            "data": kept_as.asked_data,
            "model": model_key(found.model),
            "[[seed]]": found.seed,
            "[[rank]]": kept_as.rank,
            "[[num_ranking]]": kept_as.asked_examples,
            "version": kept_as.recipe,
        }
        # One of an earlier version does not say what it was made from, and is made again; runs have hashes anyway.
        if has["data"] is not None:
            if differ := sorted(name for name in asked if asked[name] != has[name]):
                raise InputError(
                    f"the work in {str(path.parent)!r} was begun with other {', '.join(differ)}. Give the same "
                    "options and data, or name another folder."
                )
            if set(ranking_scores(*options.needs)) - set(ranking_scores(Needs.PLACE)) <= set(found.sites[0].scores):
                return found
    ranking = rank_sites(loaded, examples, options, task=splits.name, progress=progress)
    settings = replace(ranking.settings, asked_examples=options.max_examples, asked_data=data)
    ranking = replace(ranking, settings=settings)
    with told(f"make the folder {str(path.parent)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    ranking.save(path)
    return ranking
