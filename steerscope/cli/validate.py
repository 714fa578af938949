"""``steerscope validate``: train at some sites and see whether the ranking foresaw the outcome."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from steerscope.cli.bundles import Asked, Bundle, Loading
from steerscope.cli.options import (
    MODEL,
    RESULTS,
    RUNNING,
    SITES,
    TRAINING,
    JsonTarget,
    Quiet,
    RankedExamples,
    Resume,
    StepBatch,
    TestExamples,
    command_line,
    number_or_sites,
    option,
)


@dataclass(frozen=True)
class _Loading(Loading):
    dtype: Annotated[str, option("float32 or float64.", MODEL)] = "float32"


@dataclass(frozen=True)
class _Validation(Bundle):
    """By the names of ``ValidateOptions``."""

    sites: Annotated[str, option("How many sites, or names: 3.mlp_out,12.resid_post,...", SITES)] = "12"
    rank: Annotated[int, option("Rank of the linear edits and of LoRA.", SITES)] = 8
    seeds: Annotated[int, option("Training seeds per site.", TRAINING)] = 2
    steps: Annotated[int, option("Optimizer steps of every run.", TRAINING)] = 32
    batch_size: StepBatch = 16
    num_ranking: RankedExamples = 192
    num_test: TestExamples = 256
    references: Annotated[bool, option("Train LoRA, full fine-tuning and the greedy set too.", TRAINING)] = True
    seed: Annotated[int, option("Seed of the ranking, the first run and the bootstrap.", RUNNING)] = 0


def validate(
    asked: Asked,
    *,
    wanted: _Validation,
    out: Annotated[Path, option("Folder for runs, validation.json and the report.", RESULTS)] = Path("validation"),
    json: JsonTarget = None,
    resume: Resume = False,
    loading: _Loading,
    quiet: Quiet = False,
) -> None:
    """Train edits at sites spread over the model and compare the outcome with the ranking and plain baselines."""
    from steerscope.analysis.results import Ranking
    from steerscope.cli.output import RESUME, check_folder, check_json_target, give_json
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import validate as validate_model
    from steerscope.experiments.validation.options import ValidateOptions
    from steerscope.folders import Kind
    from steerscope.installed import require
    from steerscope.reports.validation.tables import print_validation

    # Everything that can be refused is refused here, before a model is loaded.
    sites = number_or_sites(wanted.sites)
    options = ValidateOptions(**(wanted.as_dict() | {"sites": sites}), **loading.as_dict())
    options.check()
    require("report", "the report of a validation")
    check_json_target(json, "agreements")
    check_folder(out, Kind.VALIDATION, overwrite=resume, advice=RESUME, also=(Kind.RANKING,))
    source = asked.chosen_task(loading)
    with stage_progress(quiet=quiet) as show:
        result = validate_model(asked.model, source, options, out, progress=show, command=command_line())
    from steerscope.reports.ranking.folder import write_report  # matplotlib is slow to load
    from steerscope.reports.validation.page import write_validation

    write_report(Ranking.load(out / "ranking.json"), out / "ranking")
    page = write_validation(result, out)
    if not give_json(json, result.to_json(), "agreements"):
        print_validation(result, file=sys.stdout)
    print(f"report: {page}", file=sys.stderr)
