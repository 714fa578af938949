"""The report of a ranking: a page, figures and JSON in a folder; sentences and tables in a terminal."""

from __future__ import annotations

from pathlib import Path

# Figures, page and door
from steerscope.analysis.report.captions import FIGURE_STEMS, figure_entries
from steerscope.analysis.report.figure_style import figure_bytes
from steerscope.analysis.report.figures import (
    plot_greedy_growth,
    plot_heat_map,
    plot_kinds_over_depth,
    plot_learning_curves,
    plot_other_scores,
    plot_ranking,
)
from steerscope.analysis.report.page import render_page

# Terminal
from steerscope.analysis.report.table import format_summary, format_table, print_ranking
from steerscope.analysis.report.text import headline
from steerscope.analysis.results import Ranking
from steerscope.files import written_aside
from steerscope.folders import Kind, require_folder_for

_DRAWN = tuple(f"figures/{stem}.{ending}" for stem in FIGURE_STEMS for ending in ("svg", "png"))

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
        InputError: The folder holds something else than a report, or cannot be written to.

    Cost: about five seconds and one megabyte.
    """
    target = Path(folder)
    require_folder_for(target, Kind.RANKING, also=(Kind.VALIDATION,))
    drawn = []
    # Everything is drawn, then written aside, before anything is replaced: a failure or an interruption must leave
    # no half-written report behind, nor touch an earlier one.
    for entry in figure_entries(ranking):
        figure = entry.plot(ranking)
        drawn.append((entry, figure_bytes(figure, "svg"), figure_bytes(figure, "png")))
    page = render_page(ranking, [(entry, svg) for entry, svg, _ in drawn])
    with written_aside(target, "the report", last=("ranking.json", "index.html"), instead_of=_DRAWN) as aside:
        (aside / "figures").mkdir()
        for entry, svg, png in drawn:
            (aside / "figures" / f"{entry.stem}.svg").write_bytes(svg)
            (aside / "figures" / f"{entry.stem}.png").write_bytes(png)
        ranking.save(aside / "ranking.json")
        (aside / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return target / "index.html"
