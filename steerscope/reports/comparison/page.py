"""The page of a comparison: which method does best, and which cannot be told from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steerscope.experiments.comparison.groups import Comparison, Entry
from steerscope.folders import Kind
from steerscope.reports import page as pages
from steerscope.reports.comparison.figures import entry_name, plot_comparison
from steerscope.reports.comparison.tables import comparison_table
from steerscope.reports.page import Fact, Fold, Page, Part, Section, setting_pairs, share_bar
from steerscope.reports.page_folder import Drawn, PageFigure, write_page_folder
from steerscope.reports.vocabulary import clean, count, listing


def told_apart(comparison: Comparison) -> tuple[list[Entry], list[Entry]]:
    """Return the configurations whose intervals overlap with that of the first, and those that are behind it."""
    first = comparison.entries[0]
    near = [one for one in comparison.entries[1:] if one.high >= first.low]
    return near, [one for one in comparison.entries[1:] if one.high < first.low]


def headline(comparison: Comparison) -> str:
    """Say what is best, and what cannot be told from it."""
    first, (near, _) = comparison.entries[0], told_apart(comparison)
    name = clean(entry_name(first), 60)
    if len(comparison.entries) == 1:
        return f"{name} is right on {first.accuracy:.1%} of the questions."
    if first.low <= comparison.majority:
        return f"{name} is highest with {first.accuracy:.1%}, not surely above always giving the most frequent answer."
    if not near:
        return f"{name} does best: {first.accuracy:.1%}; all others are behind."
    others = clean(entry_name(near[0]), 40) if len(near) == 1 else f"{len(near)} others"
    return f"{name} is highest with {first.accuracy:.1%}, but cannot be told from {others}."


def answer_sentences(comparison: Comparison) -> list[str]:
    """Say how sure that is, what the cheapest of the best costs, and what a constant reaches."""
    first, (near, behind) = comparison.entries[0], told_apart(comparison)
    cheap = min([first, *near], key=lambda one: one.parameters)
    said = [
        f"The interval of the highest is {first.low:.1%} to {first.high:.1%} on {count(comparison.n, 'test question')}"
        f"; always giving the most frequent answer is right on {comparison.majority:.1%}."
    ]
    if near:
        said.append(
            f"{count(len(near), 'configuration')} cannot be told from it (intervals overlap), "
            f"{len(behind):,} {'is' if len(behind) == 1 else 'are'} behind."
        )
        if cheap is not first:
            said.append(
                f"The cheapest of these is {clean(entry_name(cheap), 60)} with {count(cheap.parameters, 'parameter')}: "
                f"{cheap.accuracy:.1%}."
            )
    return said


def render_page(comparison: Comparison, drawn: Sequence[Drawn[Comparison]]) -> str:
    """Return the page as HTML.

    Args:
        comparison: The comparison.
        drawn: Its figure.

    Returns:
        One file that needs no other.
    """
    first = comparison.entries[0]
    table = (Part(table=comparison_table(comparison)),)
    models = list(dict.fromkeys(clean(one.model, 60) for one in comparison.entries))
    folds = tuple(
        Fold(
            f"{clean(entry_name(one), 80)}: settings and folders",
            (Part(sentences=tuple(map(clean, one.folders)), pairs=setting_pairs(sorted(one.settings.items()))),),
        )
        for one in comparison.entries
    )
    num_runs = sum(len(one.seeds) for one in comparison.entries)
    page = Page(
        title=f"Methods compared on {clean(comparison.task, 60)}",
        about=(listing(models, 2), clean(comparison.task, 80), count(comparison.n, "test question")),
        headline=headline(comparison),
        is_sure=not told_apart(comparison)[0] and first.low > comparison.majority,
        lead=tuple(answer_sentences(comparison)),
        facts=(
            Fact("highest accuracy", f"{first.accuracy:.1%}", f"{first.low:.1%} to {first.high:.1%}",
                 share_bar(first.accuracy, first.low, first.high)),
            Fact("most frequent answer", f"{comparison.majority:.1%}"),
            Fact("configurations", f"{len(comparison.entries):,}", count(num_runs, "run")),
        ),
        warnings=(comparison.data_note,) if comparison.data_note else (),
        sections=tuple(Section(one.entry.heading, one.entry.stem, table) for one in drawn),
        method=folds,
        caveats=(
            "Intervals say which questions were drawn, not which seed; that they overlap does not make two equal.",
            f"It speaks of {clean(comparison.task, 60)} alone.",
        ),
        file="comparison.json",
    )  # fmt: skip
    return pages.render(page, drawn)


def figure_entries(comparison: Comparison) -> list[PageFigure[Comparison]]:
    """Return the figure of a comparison."""
    shown = "; ".join(f"{clean(entry_name(one), 40)} {one.accuracy:.1%}" for one in comparison.entries[:6])
    return [
        PageFigure(
            "comparison",
            "Accuracy and what it costs",
            plot_comparison,
            f"Test accuracy against trained parameters of {count(len(comparison.entries), 'configuration')}: {shown}.",
            "Up and to the left is better. Lines are Wilson's 95% intervals of the mean over seeds; dots are seeds.",
        )
    ]


def write_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write ``comparison.json``, ``index.html`` and ``figures/comparison.svg`` with ``.png``.

    Args:
        comparison: The comparison.
        folder: Where the files go; made if missing.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder holds something else than a comparison, or cannot be written to.
    """
    # Where earlier versions wrote the figure.
    earlier, figures = ("comparison.svg", "comparison.png"), figure_entries(comparison)
    return write_page_folder(
        comparison, folder, Kind.COMPARISON, "comparison.json", figures, render_page,
        stems=("comparison",), instead_of=earlier,
    )  # fmt: skip
