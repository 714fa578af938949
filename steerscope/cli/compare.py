"""``steerscope compare``: compare finished runs, as a table, a page and JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from steerscope.cli.options import RESULTS, JsonTarget, option


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.", metavar="DIR...")],
    out: Annotated[Path, option("Folder for comparison.json and its page.", RESULTS)] = Path("comparison"),
    json: JsonTarget = None,
    overwrite: Annotated[bool, option("Write into a folder that is not empty.", RESULTS, "--overwrite")] = False,
) -> None:
    """Compare runs of one task on the same test questions; seeds of one configuration make one row."""
    from steerscope.cli.output import check_folder, check_json_target, give_json
    from steerscope.experiments.comparison import compare as compare_runs
    from steerscope.folders import Kind
    from steerscope.installed import require
    from steerscope.reports.comparison.tables import print_comparison

    require("report", "the page of a comparison")
    check_folder(out, Kind.COMPARISON, overwrite=overwrite)
    check_json_target(json, "entries")
    found = compare_runs(folders)
    from steerscope.reports.comparison.page import write_comparison  # matplotlib is slow to load

    page = write_comparison(found, out)
    if not give_json(json, found.to_json(), "entries"):
        print_comparison(found, file=sys.stdout)
    print(f"report: {page}", file=sys.stderr)
