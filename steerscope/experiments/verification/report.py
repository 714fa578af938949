"""The page of a verification: one self-contained HTML file with the figures inside, and the folder around it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from steerscope.analysis import report as ranking_report
from steerscope.analysis.report.figure_style import figure_bytes
from steerscope.analysis.report.table import TextTable
from steerscope.analysis.report.vocabulary import clean
from steerscope.experiments.verification.figures import FIGURE_STEMS, VerifyFigure, figure_entries
from steerscope.experiments.verification.results import Verification
from steerscope.experiments.verification.tables import full_rows, headline, measurement_tables, proposition_table
from steerscope.files import written_aside
from steerscope.folders import Kind, require_folder_for

_DRAWN = tuple(f"figures/{stem}.{ending}" for stem in FIGURE_STEMS for ending in ("svg", "png"))
_FOLDER = Path(__file__).parent
# One look for all pages.
_STYLE = Path(ranking_report.__file__).parent / "style.css"


def render_page(found: Verification, figures: list[tuple[VerifyFigure, bytes]]) -> str:
    """Return the page as HTML that loads nothing: styles inlined, figures as data URIs, every string escaped."""
    shown = [
        {
            "stem": entry.stem,
            "heading": entry.heading,
            "alt": entry.alt,
            "caption": entry.caption,
            "uri": "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii"),
        }
        for entry, svg in figures
    ]
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("verify.html.jinja").render(
        css=_STYLE.read_text(encoding="utf-8"),
        subject=clean(found.subject, 80),
        seed=found.seed,
        headline=headline(found),
        failed=found.failed,
        counts=[(verdict, number) for verdict, number in found.counts().items()],
        warnings=found.warnings,
        figures=shown,
        propositions=_table(proposition_table(found)),
        details=full_rows(found),
        tables=[_table(table) for table in measurement_tables(found)],
        pairs=_pairs(found),
        command=clean(found.settings.get("command", "")),
    )


def _table(table: TextTable) -> dict[str, Any]:
    return {
        "title": table.title,
        "note": table.note,
        "columns": [{"name": name, "right": name in table.right} for name in table.columns],
        "rows": table.rows,
    }


def _pairs(found: Verification) -> list[tuple[str, str]]:
    """Return what was run, as named values."""
    identity = {key: value for key, value in (found.model or {}).items() if value is not None}
    groups: list[tuple[str, dict[str, Any]]] = [
        ("model", identity),
        ("fine-tuning", {k: v for k, v in found.finetune.items() if k != "losses"}),
        ("setting", {k: v for k, v in found.settings.items() if k != "command"}),
        ("version", found.versions),
        ("seconds", {k: round(v, 1) for k, v in found.timing.items()}),
    ]
    rows = [
        (f"{group}: {clean(key).replace('_', ' ')}", clean(value))
        for group, many in groups
        for key, value in many.items()
    ]
    losses = [f"{loss:.2f}" for loss in found.finetune.get("losses", ())]
    return rows + ([("fine-tuning: losses", ", ".join(losses))] if losses else [])


def write_verification(found: Verification, folder: str | Path) -> Path:
    """Write ``verify.json``, ``index.html`` and ``figures/*.svg`` with ``*.png``.

    Everything is drawn and written aside before anything is replaced: an interruption leaves an earlier report whole.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder holds something else than such a report, or cannot be written to.
    """
    target = Path(folder)
    require_folder_for(target, Kind.VERIFICATION)
    drawn = []
    for entry in figure_entries(found):
        figure = entry.plot(found)
        drawn.append((entry, figure_bytes(figure, "svg"), figure_bytes(figure, "png")))
    page = render_page(found, [(entry, svg) for entry, svg, _ in drawn])
    with written_aside(target, "the report", last=("verify.json", "index.html"), instead_of=_DRAWN) as aside:
        (aside / "figures").mkdir()
        for entry, svg, png in drawn:
            (aside / "figures" / f"{entry.stem}.svg").write_bytes(svg)
            (aside / "figures" / f"{entry.stem}.png").write_bytes(png)
        found.save(aside / "verify.json")
        (aside / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return target / "index.html"
