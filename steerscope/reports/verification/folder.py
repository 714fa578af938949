"""The page of a verification: one self-contained HTML file with the figures inside, and the folder around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steerscope.experiments.verification.results import Verification
from steerscope.folders import Kind, require_folder_for
from steerscope.reports.page_folder import PageFigure, render, table_values, write_page_folder
from steerscope.reports.verification.figures import FIGURE_STEMS, figure_entries
from steerscope.reports.verification.tables import full_rows, headline, measurement_tables, proposition_table
from steerscope.reports.vocabulary import clean

_TEMPLATE = Path(__file__).parent / "verify.html.jinja"


def render_page(found: Verification, figures: list[tuple[PageFigure[Verification], bytes]]) -> str:
    """Return the page as HTML.

    Args:
        found: The verification.
        figures: The figures with their SVG content.

    Returns:
        One file that needs no other.
    """
    return render(
        _TEMPLATE,
        figures,
        subject=clean(found.subject, 80),
        seed=found.seed,
        headline=headline(found),
        failed=found.failed,
        counts=[(verdict, number) for verdict, number in found.counts().items()],
        warnings=found.warnings,
        propositions=table_values(proposition_table(found)),
        details=full_rows(found),
        tables=[table_values(table) for table in measurement_tables(found)],
        pairs=_pairs(found),
        command=clean(found.settings.get("command", "")),
    )


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

    Args:
        found: The verification.
        folder: Where the files go; made if missing.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder holds something else than such a report, or cannot be written to.
    """
    target = Path(folder)
    require_folder_for(target, Kind.VERIFICATION)
    return write_page_folder(found, target, "verify.json", figure_entries(found), render_page, stems=FIGURE_STEMS)
