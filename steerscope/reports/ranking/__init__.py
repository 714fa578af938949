"""The report of a ranking: a page, figures and JSON in a folder; sentences and tables in a terminal.

Page and figures need the extra ``report``; their modules are loaded when first used, so that the terminal does without.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerscope.analysis.results import Ranking
from steerscope.folders import Kind, require_folder_for
from steerscope.installed import require

# Terminal
from steerscope.reports.ranking.tables import format_summary, format_table, print_ranking
from steerscope.reports.ranking.text import headline

if TYPE_CHECKING:
    from steerscope.reports.ranking.figures import (
        plot_greedy_growth,
        plot_heat_map,
        plot_kinds_over_depth,
        plot_learning_curves,
        plot_other_scores,
        plot_ranking,
    )

__all__ = [
    "format_summary",
    "format_table",
    "headline",
    "plot_greedy_growth",
    "plot_heat_map",
    "plot_kinds_over_depth",
    "plot_learning_curves",
    "plot_other_scores",
    "plot_ranking",
    "print_ranking",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'steerscope.reports.ranking' has no attribute {name!r}")
    require("report", f"{name}()")
    from steerscope.reports.ranking import figures

    return getattr(figures, name)


def write_report(ranking: Ranking, folder: str | Path) -> Path:
    """Write a ranking as a folder: ``ranking.json``, ``index.html`` and ``figures/*.svg`` with ``*.png``.

    Equal rankings give equal bytes. Figures the ranking has no data for (a greedy set, learning curves) are left
    out, and those of an earlier report in the same folder removed.

    Args:
        ranking: The ranking to report.
        folder: Where to write; made where it does not exist.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The extra ``report`` is not installed, or the folder holds something else than a report or cannot be
            written to.

    Cost: about five seconds and one megabyte.
    """
    require("report", "a report")
    from steerscope.reports.page_folder import write_page_folder
    from steerscope.reports.ranking.captions import FIGURE_STEMS, figure_entries
    from steerscope.reports.ranking.page import render_page

    target = Path(folder)
    require_folder_for(target, Kind.RANKING, also=(Kind.VALIDATION,))
    figures = figure_entries(ranking)
    return write_page_folder(ranking, target, "ranking.json", figures, render_page, stems=FIGURE_STEMS)
