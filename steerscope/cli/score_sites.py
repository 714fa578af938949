"""``steerscope score-sites``: how well do scores of sites agree with training that was done already?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerscope.cli.options import MODEL, RESULTS, RUNNING, SITES, Device, JsonTarget, Overwrite, Quiet, option
from steerscope.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from steerscope.experiments.site_tables.table import SiteTable
    from steerscope.experiments.site_tables.user_scores import UserScores


def score_sites(
    tables: Annotated[
        list[Path], typer.Argument(help="Site tables, as steerscope sweep makes them.", metavar="TABLE...")
    ],
    score: Annotated[
        list[str] | None,
        option("Name of a score in the tables, or FILE.py with score(site, table); may be repeated.", SITES),
    ] = None,
    out: Annotated[Path | None, option("Folder for judgements.json, index.html and figures.", RESULTS)] = None,
    overwrite: Overwrite = False,
    json: JsonTarget = None,
    model: Annotated[str | None, option("The tables' model, if it is not found under its name.", MODEL)] = None,
    device: Device = "cpu",
    seed: Annotated[int, option("Seed of the bootstrap.", RUNNING)] = 0,
    quiet: Quiet = False,
) -> None:
    """Compare scores of sites with the trained outcomes of site tables, without training anything."""
    from steerscope.cli.output import check_folder, check_json_target, give_json, page_beside
    from steerscope.experiments.site_tables.judging import Judgements, judge
    from steerscope.experiments.site_tables.table import SiteTable
    from steerscope.experiments.site_tables.user_scores import scores_of_file
    from steerscope.folders import Kind
    from steerscope.installed import require
    from steerscope.option_types import require_seed
    from steerscope.reports.site_tables.screen import across

    check_json_target(json, "judgements")
    if out is not None:
        require("report", "a page of the judgements ([[out]])")
        check_folder(out, Kind.JUDGEMENTS, overwrite=overwrite)
    require_seed(seed)
    loaded = [SiteTable.load(path) for path in tables]
    users = {name: scores_of_file(name) for name in score or () if name.endswith(".py")}
    found = [judge(table, _scores(table, score, users, model, device, quiet), seed=seed) for table in loaded]
    if not give_json(json, Judgements(tuple(found)).to_json(), "judgements"):
        print("\n\n".join(map(str, found)), file=sys.stdout)
        if len(found) > 1:
            print("\n" + across(found), file=sys.stdout)
        if json is not None:
            print(f"results: {json}", file=sys.stderr)
    if out is not None:
        page_beside("write_judgements", found, out)


def _scores(
    table: SiteTable,
    wanted: list[str] | None,
    users: dict[str, UserScores],
    model: str | None,
    device: str,
    quiet: bool,
) -> dict[str, dict[str, float]] | None:
    """Return the scores that are asked for; None for those that the table holds."""
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.site_tables.judging import FIXED
    from steerscope.experiments.site_tables.user_scores import model_of, scores_from

    if not wanted:
        return None
    chosen: dict[str, dict[str, float]] = {}
    for name in wanted:
        if name in users:
            user = users[name]
            with stage_progress(quiet=quiet) as show:
                loaded = model_of(table, model, device) if user.needs_ranking else None
                own = scores_from(user, table, loaded, show)
        elif name in table.scores:
            own = {} if name in FIXED else {name: table.scores[name]}
        elif name in FIXED:
            own = {}
        else:
            known = [*table.scores, *FIXED]
            raise InputError(
                f"the table of {table.name} has no score {name!r}; it has {', '.join(dict.fromkeys(known))}."
                f"{did_you_mean(name, known)} A file of your own ends in .py."
            )
        if twice := set(own) & set(chosen):
            raise InputError(f"two scores are called {sorted(twice)[0]!r}; name one of the files otherwise.")
        chosen |= own
    return chosen
