"""``steerscope search``: find the site to train at, and get an adapter trained there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from steerscope.cli.bundles import Asked, Bundle, Cluster, Loading, SiteTraining
from steerscope.cli.options import (
    RESULTS,
    RUNNING,
    SITES,
    TRAINING,
    JsonTarget,
    Quiet,
    RankedExamples,
    Resume,
    command_line,
    option,
)


@dataclass(frozen=True)
class _Search(Bundle):
    """By the names of ``SearchOptions``."""

    budget: Annotated[
        float | None, option("Minutes of ranking and training; plain defaults take as long again.", TRAINING)
    ] = None
    candidates: Annotated[int, option("Most sites that are trained at.", SITES)] = 24
    start: Annotated[
        str, option("Which sites: {values} (score: half of them spread).", SITES, values=("score", "depth", "spread"))
    ] = "score"
    steps: Annotated[int, option("Optimizer steps of a whole run.", TRAINING)] = 120
    sets: Annotated[bool, option("Let sets of sites compete too.", SITES)] = True
    references: Annotated[bool, option("Train plain defaults for comparison.", TRAINING)] = True
    num_ranking: RankedExamples = 192
    seed: Annotated[int, option("Seed of the ranking and of training.", RUNNING)] = 0


def search(
    asked: Asked,
    *,
    wanted: _Search,
    edits: SiteTraining,
    cluster: Cluster,
    out: Annotated[Path, option("Folder for runs, search.json, its page and adapter/.", RESULTS)] = Path("search"),
    json: JsonTarget = None,
    resume: Resume = False,
    loading: Loading,
    quiet: Quiet = False,
) -> None:
    """Rank the sites, train at the best ones in rounds, and keep the adapter of the one that learns most."""
    from steerscope.cli.output import RESUME, check_folder, check_json_target, give_json, page_beside
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import search as search_model
    from steerscope.experiments.searching import SearchOptions
    from steerscope.folders import Kind

    # Everything that can be refused is refused here, before a model is loaded.
    options = SearchOptions(**wanted.as_dict(), **edits.as_dict(), **cluster.as_dict(), **loading.as_dict())
    check_json_target(json, "contenders")
    check_folder(out, Kind.SEARCH, overwrite=resume, advice=RESUME, also=(Kind.RANKING,))
    source = asked.chosen_task(loading)
    with stage_progress(quiet=quiet) as show:
        result = search_model(asked.model, source, options, out, progress=show, command=command_line())
    if not give_json(json, result.to_json(), "contenders"):
        print(result, file=sys.stdout)
    print(f"adapter: {result.adapter}", file=sys.stderr)
    page_beside("write_search", result, out)
