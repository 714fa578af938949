"""The page of what site tables say of scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from steerscope.errors import InputError
from steerscope.experiments.site_tables.judging import Judgement, Judgements
from steerscope.folders import Kind
from steerscope.reports import page as pages
from steerscope.reports.agreement_figure import agreement_alt, agreement_rows, agreement_spots, plot_agreements
from steerscope.reports.page import Fact, Fold, Page, Part, Section
from steerscope.reports.page_folder import Drawn, PageFigure, Spot, write_page_folder
from steerscope.reports.site_tables.tables import (
    admission_table,
    attainable_sentence,
    full_table,
    pairs_sentence,
    score_table,
)
from steerscope.reports.vocabulary import clean, count, score_words


def judgement_headline(found: Judgement) -> str:
    """Say which score agrees best with training, if the table may judge at all."""
    plain = {*found.baselines, *found.trained}
    rows = {name: one for name, one in found.scores.items() if name not in plain}
    if not found.admission.holds:
        number = f"{_failing(found)} of {len(found.admission.criteria)}"
        return f"The table may not judge scores: {number} criteria do not hold."
    if not rows:
        return "Baselines alone were judged."
    best = max(rows, key=lambda name: rows[name].agreement.spearman)
    top = max(found.baselines, key=lambda name: found.scores[name].agreement.spearman)
    own, other = rows[best].agreement, found.scores[top].agreement
    label = score_words(best).label
    if own.low <= 0:
        return f"No score is surely better than chance; the best, the {label}, has Spearman {own.spearman:.2f}."
    beats = "more than" if own.spearman > other.spearman else "less than"
    return (
        f"The {label} foresaw training best: Spearman {own.spearman:.2f}, {beats} the best plain baseline's "
        f"{other.spearman:.2f}."
    )


def _failing(found: Judgement) -> int:
    return sum(not one.holds for one in found.admission.criteria)


def verdict_sentences(found: Judgement) -> tuple[str, ...]:
    """Say whether a table may judge, what is attainable, and how many pairs there are."""
    return (found.admission.sentence, attainable_sentence(found), pairs_sentence(found))


def judgement_folds(found: Judgement) -> tuple[Fold, ...]:
    """Return the rule of admission, and everything about every score."""
    every, rule = full_table(found), admission_table(found)
    return (
        Fold("May it judge scores? The rule", (Part(table=rule),)),
        Fold("Every number of every score", (Part(table=every),)),
    )


def _judgement_entries(found: Judgements) -> list[PageFigure[Judgements]]:
    return [agreement_entry(one, f"agreements_{i}") for i, one in enumerate(found.judgements, 1) if one.scores]


def render_judgements(found: Judgements, drawn: Sequence[Drawn[Judgements]]) -> str:
    """Return the page of judgements as HTML.

    Args:
        found: One or several judgements.
        drawn: Their figures.

    Returns:
        One file that needs no other.
    """
    first, several = found.judgements[0], len(found.judgements) > 1
    sections = [
        Section(
            clean(one.table, 80) if several else "Which score foresaw training",
            f"agreements_{i}",
            (Part("", verdict_sentences(one), score_table(one)),),
            judgement_folds(one),
        )
        for i, one in enumerate(found.judgements, 1)
    ]
    admitted = sum(one.admission.holds for one in found.judgements)
    said = [judgement_headline(one) for one in found.judgements]
    named = [f"{clean(one.table, 60)}: {text}" for one, text in zip(found.judgements, said, strict=True)]
    head = f"{admitted} of {count(len(found.judgements), 'table')} may judge scores." if several else said[0]
    page = Page(
        title="Scores judged by trained outcomes",
        about=tuple(clean(one.table, 80) for one in found.judgements[:3]),
        headline=head,
        is_sure=admitted > 0,
        lead=tuple(named) if several else verdict_sentences(first),
        facts=(
            Fact("sites", " / ".join(str(one.num_sites) for one in found.judgements[:3])),
            Fact("scores", f"{len(first.scores):,}", "baselines among them"),
            Fact("admitted", f"{admitted} of {len(found.judgements)}", "by a rule fixed in advance"),
        ),
        sections=tuple(sections),
        caveats=("It speaks of these tables' models and tasks alone; sites of one layer are not independent.",),
        file="judgements.json",
    )
    return pages.render(page, drawn)


def write_judgements(found: Judgement | Sequence[Judgement], folder: str | Path) -> Path:
    """Write ``judgements.json``, ``index.html`` and ``figures/*.svg`` with ``*.png``.

    Args:
        found: What one or several tables say of scores.
        folder: Where the files go; made if missing.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: No judgement; or the folder holds something else, or cannot be written to.
    """
    every = Judgements((found,) if isinstance(found, Judgement) else tuple(found))
    if not every.judgements:
        raise InputError("got no judgement to report; expected at least one, as judge(table) returns it.")
    entries = _judgement_entries(every)
    return write_page_folder(
        every, folder, Kind.JUDGEMENTS, "judgements.json", entries, render_judgements, stems=["agreements_*"]
    )  # fmt: skip


def agreement_entry(judgement: Judgement, stem: str = "agreements") -> PageFigure[Any]:
    """Return the figure of a judgement, on whatever page.

    Args:
        judgement: What a table says of scores.
        stem: Of its files.

    Returns:
        The figure.
    """

    def plot(_: object) -> Figure:
        return plot_agreements(judgement)

    def spots(_: object, figure: Figure) -> list[Spot]:
        return agreement_spots(judgement, figure)

    return PageFigure(
        stem,
        "Which score foresaw training",
        plot,
        agreement_alt(agreement_rows(judgement)),
        "Intervals (95%) are over layers. Hollow: plain baselines, which cost nothing, and losses after a few steps of "
        "real training.",
        spots=spots,
    )
