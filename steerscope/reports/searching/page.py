"""The page of a search: where to train, what it gave, and whether plain defaults do as well."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from steerscope.experiments.searching.result import SearchResult, Tested
from steerscope.folders import Kind
from steerscope.reports import page as pages
from steerscope.reports.page import Fact, Next, Page, Part, Section, settings_fold
from steerscope.reports.page_folder import Drawn, PageFigure, write_page_folder
from steerscope.reports.searching.figures import (
    contender_spots,
    interval_of,
    plot_contenders,
    plot_tested,
    tested_name,
)
from steerscope.reports.tables import TextTable
from steerscope.reports.typed import subject_words
from steerscope.reports.vocabulary import clean, count

FIGURE_STEMS = ("tested", "contenders")


_SERVED = {
    "lora": "The edit is exactly a LoRA, which vLLM, SGLang and PEFT serve (export_lora).",
    "lora_with_bias": "The edit is exactly a LoRA with a bias, which PEFT alone runs (export_lora(lora_bias=True)).",
    "adapter": "No LoRA is exactly this edit: it runs with steerscope.",
}


def headline(result: SearchResult) -> str:
    """Say where training did best, and whether that is more than an output that was recalibrated."""
    best, before = result.best, result.before
    low, _ = interval_of(best.accuracy, before.num_test)
    where, gained = tested_name(best), f"{best.accuracy:.1%} of test examples right, untrained {before.accuracy:.1%}"
    if best.loss is None:
        return f"Training at {where} diverged; the search found nothing to use."
    if low <= max(before.accuracy, before.recalibrated_accuracy, before.majority):
        return f"Training did best at {where}, but not surely better than without it: {gained}."
    return f"Train at {where}: {gained}."


def answer_sentences(result: SearchResult) -> list[str]:
    """Say what it costs, what defaults do, and what no training does."""
    best, before = result.best, result.before
    num_test = before.num_test
    low, high = interval_of(best.accuracy, num_test)
    rest = len({one.name for one in result.contenders}) - 1
    said = [
        f"The edit has {count(best.n_params, 'number')}, trained at the rate {best.learning_rate:.3g}; its accuracy on "
        f"{count(num_test, 'test example')} that chose nothing has the 95% interval {low:.1%} to {high:.1%}."
        + ("" if best.loss is None else f" Test loss {best.loss:.3f} nats, untrained {before.loss:.3f}."),
        f"A recalibrated output alone (temperature and bias) is right on {before.recalibrated_accuracy:.1%}; always "
        f"giving one answer on {before.majority:.1%}.",
    ]
    if best.served_as is not None:
        said.append(_SERVED[best.served_as])
    for other in result.references:
        said.append(_beside(best, other, num_test))
    said.append(
        f"It was chosen among {count(rest + 1, 'candidate')}, in {sum(result.seconds.values()) / 60:.1f} minutes."
    )
    return said


def _beside(best: Tested, other: Tested, num_test: int) -> str:
    """Compare with a plain default by whether intervals overlap: on the same examples, so they are rather too wide."""
    (low, high), (other_low, other_high) = (interval_of(one.accuracy, num_test) for one in (best, other))
    size = f"with {count(other.n_params, 'number')}"
    if low > other_high:
        how = "is behind"
    elif other_low > high:
        how = "is ahead"
    else:
        how = "cannot be told from it (intervals overlap)"
    return f"The plain default {tested_name(other)}, {size}, {how}: {other.accuracy:.1%}."


def figure_entries(result: SearchResult) -> list[PageFigure[SearchResult]]:
    """Return the figures that the search has the data for."""
    rows = [result.best, *result.references]
    found = [
        PageFigure(
            "tested",
            "The chosen edit beside plain defaults",
            plot_tested,
            "Test accuracies with intervals: "
            + "; ".join(f"{tested_name(one)} {one.accuracy:.1%}" for one in rows)
            + f". Untrained: {result.before.accuracy:.1%}.",
            "Filled: what the search chose. Hollow: plain defaults, with a search for their rate within the same time. "
            "Lines: what needs no edit. Intervals are Wilson's 95%.",
        )
    ]
    shown = [one for one in result.contenders if one.train_loss is not None]
    if shown:
        found.append(
            PageFigure(
                "contenders",
                "How the candidates fell away",
                plot_contenders,
                f"Training losses of {count(len(shown), 'edit')} by the steps that they were trained for; "
                f"{tested_name(result.best)} was chosen.",
                "Every mark is one edit at one learning rate. All train a few steps, the better ones go on; what is "
                "trained to the end is compared on selection examples.",
                spots=contender_spots,
            )
        )
    return found


def contender_table(result: SearchResult) -> TextTable:
    """Return everything that was trained, what came further first."""
    columns = ("no.", "trained", "steps", "rate", "training loss", "selection loss", "selection accuracy", "score")
    return TextTable(
        f"All {count(len(result.contenders), 'run')}",
        columns,
        frozenset(columns) - {"trained"},
        tuple(
            (
                str(place),
                tested_name(one),
                str(one.steps),
                f"{one.learning_rate:.3g}",
                "diverged" if one.train_loss is None else f"{one.train_loss:.3f}",
                "" if one.selection_loss is None else f"{one.selection_loss:.3f}",
                "" if one.selection_accuracy is None else f"{one.selection_accuracy:.1%}",
                "" if one.score is None else f"{one.score:.3f}",
            )
            for place, one in enumerate(result.contenders, 1)
        ),
        "Losses in nats, on examples that were not learned from yet. Score: the ranking's, of a single site.",
    )


def tested_table(result: SearchResult) -> TextTable:
    """Return the chosen edit and the plain defaults on test examples."""
    columns = ("no.", "tested", "numbers", "rate", "loss", "accuracy", "95% interval", "minutes")
    rows = []
    for place, one in enumerate((result.best, *result.references), 1):
        low, high = interval_of(one.accuracy, result.before.num_test)
        rows.append(
            (
                str(place),
                tested_name(one),
                f"{one.n_params:,}",
                f"{one.learning_rate:.3g}" + ("" if one.interior else " *"),
                "diverged" if one.loss is None else f"{one.loss:.3f}",
                f"{one.accuracy:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{one.seconds / 60:.1f}",
            )
        )
    edge = any(row[3].endswith("*") for row in rows)
    note = "* a neighbouring rate was not tried or is not worse, so another rate may be better." if edge else ""
    return TextTable("On test examples", columns, frozenset(columns) - {"tested"}, tuple(rows), note)


def render_page(result: SearchResult, drawn: Sequence[Drawn[SearchResult]]) -> str:
    """Return the page as HTML.

    Args:
        result: The search.
        drawn: Its figures.

    Returns:
        One file that needs no other.
    """
    best, before = result.best, result.before
    num_test = before.num_test
    model, quantised = clean(result.model.name, 80), result.model.quantised
    parts = {
        "tested": (Part(table=tested_table(result)),),
        "contenders": (Part(table=contender_table(result)),),
    }
    low, high = interval_of(best.accuracy, num_test)
    page = Page(
        title=f"Where to train {model}",
        about=(model, clean(result.task, 80), count(num_test, "test example")),
        headline=headline(result),
        is_sure=headline(result).startswith("Train at"),
        lead=tuple(answer_sentences(result)),
        next=_next(result),
        facts=(
            Fact(
                "test accuracy",
                f"{best.accuracy:.1%}",
                f"{low:.1%} to {high:.1%}",
                pages.share_bar(best.accuracy, low, high),
            ),
            Fact("untrained", f"{before.accuracy:.1%}", f"recalibrated {before.recalibrated_accuracy:.1%}"),
            Fact("trained numbers", f"{best.n_params:,}", tested_name(best)),
            Fact("minutes", f"{sum(result.seconds.values()) / 60:.1f}", "ranking, search and references"),
        ),
        warnings=tuple(
            clean(text)
            for text in (
                quantised if isinstance(quantised, str) else "",
                result.note,
                ""
                if best.interior
                else "The best learning rate has a neighbour that was not tried or is not worse: "
                "another rate may be better.",
            )
            if text
        ),
        sections=tuple(Section(one.entry.heading, one.entry.stem, parts[one.entry.stem]) for one in drawn),
        method=settings_fold(
            {"Options": result.options, "Model": result.model, "Seconds": result.seconds, "Versions": result.versions}
        ),
        command=clean(result.command),
        caveats=(
            "One training seed: another may put a neighbouring site first.",
            f"It speaks of {clean(result.task, 60)} alone, and of edits of this family and rank.",
            "Candidates come from a ranking and a spread over depth; a site that was not a candidate may be better.",
        ),
        file="search.json",
    )
    return pages.render(page, drawn)


def _next(result: SearchResult) -> Next:
    subject = subject_words(result.command, result.model.name, result.task)
    adapter, name = clean(result.adapter, 400), clean(result.model.name, 200)
    lines = (
        f"steerscope evaluate {subject} --adapter {shlex.quote(adapter)}",
        f'steered = SteeringModel.from_pretrained(load_model("{name}"), "{adapter}")',
    )
    return Next("Next: use the adapter", lines, "The first tests it on more examples, the second loads it in Python.")


def write_search(result: SearchResult, folder: str | Path) -> Path:
    """Write ``search.json``, ``index.html`` and ``figures/*.svg`` with ``*.png``; runs and adapter are left alone.

    Args:
        result: The search.
        folder: Where the files go; made if missing. The search's own folder may be named.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder holds something else, or cannot be written to.
    """
    return write_page_folder(
        result,
        folder,
        Kind.SEARCH,
        "search.json",
        figure_entries(result),
        render_page,
        stems=FIGURE_STEMS,
        also=(Kind.RANKING,),
    )
