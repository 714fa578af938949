"""The page of a verification, and the folder around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from steerscope.experiments.verification.results import PropositionResult, Verification
from steerscope.folders import Kind
from steerscope.reports import page as pages
from steerscope.reports.page import Fact, Fold, Page, Part, Section, settings_fold
from steerscope.reports.page_folder import Drawn, write_page_folder
from steerscope.reports.verification.figures import FIGURE_STEMS, figure_entries
from steerscope.reports.verification.tables import details_table, headline, measurement_tables, proposition_table
from steerscope.reports.vocabulary import clean, listing


def render_page(found: Verification, drawn: Sequence[Drawn[Verification]]) -> str:
    """Return the page as HTML.

    Args:
        found: The verification.
        drawn: The figures.

    Returns:
        One file that needs no other.
    """
    failed = found.failed
    said = f"{listing(failed, 12)} {'fail' if len(failed) > 1 else 'fails'}" if failed else "Nothing fails"
    first = (Part(table=proposition_table(found)),)
    sections = [Section(one.entry.heading, one.entry.stem, first if i == 0 else ()) for i, one in enumerate(drawn)]
    numbers = tuple(Fold(table.title, (Part(table=table),)) for table in measurement_tables(found))
    sections.append(Section("The numbers behind the figures", folds=numbers))
    sections.append(Section("Every proposition in full", folds=tuple(map(_in_full, found.propositions))))
    finetune = {} if found.finetune is None else asdict(found.finetune)
    if losses := finetune.get("losses"):
        finetune["losses"] = ", ".join("none" if loss is None else f"{loss:.2f}" for loss in losses)
    groups = {
        "Model": found.model or {},
        "Fine-tuning": finetune,
        "Settings": replace(found.settings, command=None),
        "Versions": found.versions,
        "Seconds": {key: round(value, 1) for key, value in found.timing.items()},
    }
    page = Page(
        title=f"The theory tried on {clean(found.subject, 80)}",
        about=(clean(found.subject, 80), f"seed {found.seed}"),
        headline=said,
        is_sure=not failed,
        lead=(headline(found),),
        facts=tuple(Fact(verdict, str(number)) for verdict, number in found.counts().items()),
        warnings=tuple(map(clean, found.warnings)),
        sections=tuple(sections),
        method=settings_fold(groups),
        command=clean(found.settings.command or ""),
        file="verify.json",
    )
    return pages.render(page, drawn)


def _in_full(one: PropositionResult) -> Fold:
    notes = [*([one.vacuous] if one.vacuous else []), *one.notes]
    pairs = [("source", one.source), ("needs", one.assumptions)]
    pairs += [("public statement", one.published)] if one.published else []
    pairs += [("limits", one.limit)] if one.limit else []
    pairs += [("note", note) for note in notes]
    table = details_table(one)
    told = tuple((name, clean(text)) for name, text in pairs)
    shown = Part(sentences=(clean(one.claim),), pairs=told, table=table if table.rows else None)
    return Fold(f"{one.name} {clean(one.title)}: {one.verdict}", (shown,))


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
    return write_page_folder(
        found, folder, Kind.VERIFICATION, "verify.json", figure_entries(found), render_page, stems=FIGURE_STEMS
    )
