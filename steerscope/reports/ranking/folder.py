"""The report of a ranking: a page, figures and JSON in a folder."""

from __future__ import annotations

from pathlib import Path

from steerscope.analysis.results import Ranking
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.folders import Kind
from steerscope.reports.page_folder import write_page_folder
from steerscope.reports.ranking.captions import FIGURE_STEMS, figure_entries
from steerscope.reports.ranking.page import render_page


def write_report(ranking: Ranking, folder: str | Path, *, table: SiteTable | None = None) -> Path:
    """Write a ranking as a folder: ``ranking.json``, ``index.html`` and ``figures/*.svg`` with ``*.png``.

    Equal rankings give equal bytes. Figures the ranking has no data for (a greedy set, learning curves) are left
    out, and those of an earlier report in the same folder removed.

    Args:
        ranking: The ranking to report.
        folder: Where to write; made where it does not exist.
        table: Trained outcomes of this model and task, which the page then shows the score against.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The extra ``report`` is not installed, the table is of another model or task or has sites that were
            not ranked, or the folder holds something else than a report or cannot be written to.

    Cost: about five seconds and one megabyte.
    """
    figures = figure_entries(ranking, table)
    return write_page_folder(
        ranking, folder, Kind.RANKING, "ranking.json", figures, render_page, stems=FIGURE_STEMS, also=(Kind.VALIDATION,)
    )
