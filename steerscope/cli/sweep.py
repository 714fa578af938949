"""``steerscope sweep``: train an edit at every one of many sites, and keep what came out as a table."""

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
    Resume,
    Sharing,
    command_line,
    number_or_sites,
    option,
)
from steerscope.errors import InputError


@dataclass(frozen=True)
class _Sweep(Bundle):
    """By the names of ``SweepOptions``."""

    sites: Annotated[
        str, option("all; a number (all kinds of evenly spread layers); or names: 3.mlp_out,12.resid_post", SITES)
    ] = "48"
    rates: Annotated[
        str, option("Learning rates to choose among, 1e-3,3e-3,1e-2; without it, searched on a grid.", TRAINING)
    ] = ""
    tune_layers: Annotated[
        int | None, option("Choose rates at so many layers per kind; others take the nearest one.", TRAINING)
    ] = None
    seeds: Annotated[int, option("Training seeds per site.", TRAINING)] = 3
    steps: Annotated[int, option("Optimizer steps of every run.", TRAINING)] = 80
    longer: Annotated[int, option("Sites that are trained for twice as many steps too.", TRAINING)] = 12
    scores: Annotated[bool, option("Rank all sites at the end, and keep their scores in the table.", RESULTS)] = True
    budget: Annotated[float | None, option("Minutes; what is finished then is kept, and usable.", TRAINING)] = None
    pack_size: Annotated[int | None, option("Most runs trained together; without it, to fit.", RUNNING)] = None
    shard: Sharing = "auto"
    seed: Annotated[int, option("The first training seed.", RUNNING)] = 0


def sweep(
    asked: Asked,
    *,
    wanted: _Sweep,
    edits: SiteTraining,
    cluster: Cluster,
    out: Annotated[Path, option("Folder for runs, table.json and its page.", RESULTS)] = Path("sweep"),
    json: JsonTarget = None,
    resume: Resume = False,
    loading: Loading,
    quiet: Quiet = False,
) -> None:
    """Train one edit at each of many sites, several at a time, and keep the outcomes as a table."""
    from steerscope.cli.output import RESUME, check_folder, check_json_target, give_json, page_beside
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import sweep as sweep_model
    from steerscope.experiments.sweeping import SweepOptions
    from steerscope.experiments.sweeping.options import ALL
    from steerscope.experiments.sweeping.sweep_sites import TABLE
    from steerscope.folders import Kind

    # Everything that can be refused is refused here, before a model is loaded.
    sites = ALL if wanted.sites.strip() == ALL else number_or_sites(wanted.sites)
    read = {"sites": sites, "rates": _rates(wanted.rates)}
    options = SweepOptions(**(wanted.as_dict() | read), **edits.as_dict(), **cluster.as_dict(), **loading.as_dict())
    check_json_target(json, "runs")
    shares = options.chosen_shard is not None  # another process may have begun
    check_folder(out, Kind.SWEEP, overwrite=resume or shares, advice=RESUME, also=(Kind.RANKING,))
    source = asked.chosen_task(loading)
    with stage_progress(quiet=quiet) as show:
        table = sweep_model(asked.model, source, options, out, progress=show, command=command_line())
    if not give_json(json, table.to_json(), "runs"):
        print(table, file=sys.stdout)
    cost = table.cost
    speed = (cost.operations or 0.0) / max(cost.seconds or 0.0, 1e-9)
    print(f"{cost.runs} runs, {speed / 1e9:,.0f} GFLOP/s in training; table: {out / TABLE}", file=sys.stderr)
    page_beside("write_site_table", table, out)


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(",") if one.strip())
    except ValueError:
        raise InputError(f"[[rates]] is {text!r}; expected numbers such as 1e-3,3e-3,1e-2.") from None
