"""The ranking in a terminal: rich tables on a screen, plain aligned text in a pipe."""

from __future__ import annotations

import sys
import textwrap
from typing import TextIO

from rich.console import Console
from rich.text import Text

from steerscope.analysis.results import Ranking
from steerscope.reports.ranking.candidates import Candidate, candidates, kind_candidates
from steerscope.reports.ranking.text import (
    answer_sentences,
    certainty_sentences,
    headline,
    recommends,
    warning_sentences,
)
from steerscope.reports.tables import WIDTH, TextTable, plain_table, rich_table
from steerscope.reports.vocabulary import clean, format_interval, format_score, score_words

_RIGHT = frozenset({"rank", "step", "share", "score", "params", "layers"})


def value_column(ranking: Ranking) -> str:
    """Return the heading of the score's column."""
    return "share" if score_words(ranking.score).is_share else "score"


def tie_mark(ranking: Ranking, row: Candidate) -> str:
    """Return ``best`` (``first`` where none is recommended), ``tie`` (with the best) or nothing."""
    if row.rank == 1:
        return "best" if recommends(ranking) else "first"
    return "tie" if row.site.ties_with_best else ""


def site_table(ranking: Ranking, limit: int | None = 10) -> TextTable:
    """Return the candidates, best first: all of them where ``limit`` is ``None``."""
    every = candidates(ranking)
    rows = every if limit is None else every[:limit]
    name = ranking.score
    notes = []
    if any(row.is_merged for row in rows):
        notes.append("'a = b': one vector with several names, the same edit of the stream.")
    if any(row.site.ties_with_best for row in rows[1:]):
        notes.append("tie: the data cannot tell it apart from the first.")
    return TextTable(
        title=f"Best {len(rows)} of {len(every):,} sites" if len(rows) < len(every) else f"All {len(rows):,} sites",
        columns=("rank", "site", "family", value_column(ranking), "95% interval", "params", "tie"),
        right=_RIGHT,
        rows=tuple(
            (
                str(row.rank),
                row.label,
                clean(row.site.family, 12),
                format_score(row.site.score, name),
                format_interval(row.site.ci_low, row.site.ci_high, name),
                f"{row.site.n_params:,}",
                tie_mark(ranking, row),
            )
            for row in rows
        ),
        note=" ".join(notes),
    )


def kind_table(ranking: Ranking, limit: int | None = 5) -> TextTable:
    """Return the kinds of site, each steered at all layers at once, best first."""
    every = kind_candidates(ranking)
    name = ranking.score
    return TextTable(
        title="Kinds, steered at all layers at once",
        columns=("rank", "kind", "family", value_column(ranking), "95% interval", "params", "layers"),
        right=_RIGHT,
        rows=tuple(
            (
                str(row.rank),
                row.label,
                clean(row.kind.family, 12),
                format_score(row.kind.score, name),
                format_interval(row.kind.ci_low, row.kind.ci_high, name),
                f"{row.kind.n_params:,}",
                str(row.kind.n_layers),
            )
            for row in every[:limit]
        ),
    )


def greedy_table(ranking: Ranking) -> TextTable:
    """Return how the best set of sites grows."""
    name = ranking.score
    return TextTable(
        title="Greedy set: numbers are those of the whole set so far",
        columns=("step", "adds", "family", value_column(ranking), "95% interval", "params"),
        right=_RIGHT,
        rows=tuple(
            (
                str(step.step),
                f"{step.layer}.{clean(step.kind, 24)}",
                clean(step.family, 12),
                format_score(step.score, name),
                format_interval(step.ci_low, step.ci_high, name),
                f"{step.n_params:,}",
            )
            for step in ranking.greedy
        ),
    )


def tables(ranking: Ranking, limit: int = 10) -> list[TextTable]:
    """Return the tables that have rows, in the order they are printed."""
    every = [site_table(ranking, limit), kind_table(ranking), greedy_table(ranking)]
    return [table for table in every if table.rows]


def format_table(ranking: Ranking, limit: int = 10) -> str:
    """Return the ranking as plain aligned text: sites, kinds over all layers, greedy set.

    Args:
        ranking: The ranking to print.
        limit: Number of sites to print, best first.

    Returns:
        Text of at most 100 columns, without box characters or ANSI codes, without a final newline.
    """
    return "\n\n".join(plain_table(table) for table in tables(ranking, limit))


def format_summary(ranking: Ranking) -> str:
    """Return the headline and the sentences behind it, wrapped at 100 columns."""
    paragraphs = [headline(ranking)]
    if not ranking.stability.can_tell:
        paragraphs += [*certainty_sentences(ranking), *answer_sentences(ranking)]
    else:
        paragraphs += [*answer_sentences(ranking), *certainty_sentences(ranking)]
    paragraphs += [f"Warning: {sentence}" for sentence in warning_sentences(ranking)]
    return "\n".join(textwrap.fill(text, WIDTH, break_on_hyphens=False) for text in paragraphs)


def print_ranking(ranking: Ranking, *, limit: int = 10, file: TextIO | None = None) -> None:
    """Print the summary and the tables: rich where ``file`` is a terminal, plain text in a pipe.

    Args:
        ranking: The ranking to print.
        limit: Number of sites to print, best first.
        file: Where to print; standard output by default.
    """
    out = sys.stdout if file is None else file
    if not out.isatty():
        out.write(f"{format_summary(ranking)}\n\n{format_table(ranking, limit)}\n")
        return
    console = Console(file=out, highlight=False)
    first, *rest = format_summary(ranking).split("\n", 1)
    console.print(Text(first, style="bold"))
    for text in rest:
        console.print(Text(text), soft_wrap=True)
    for table in tables(ranking, limit):
        console.print(rich_table(table))
