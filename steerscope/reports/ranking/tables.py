"""The ranking in a terminal: rich tables on a screen, plain aligned text in a pipe."""

from __future__ import annotations

import sys
import textwrap
from typing import TextIO

from rich.console import Console
from rich.text import Text

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.standing import Standing
from steerscope.reports.ranking.candidates import Candidate, candidates, kind_candidates, score_of_kinds, standing
from steerscope.reports.ranking.evidence import evidence_sentence
from steerscope.reports.ranking.next_step import next_step
from steerscope.reports.ranking.terminal_map import map_lines
from steerscope.reports.ranking.text import certainty_sentences, warning_sentences
from steerscope.reports.ranking.verdict import answer_sentences, headline, recommends
from steerscope.reports.tables import WIDTH, TextTable, plain_table, rich_table
from steerscope.reports.vocabulary import clean, count, format_interval, format_score, score_words

_SERVED = {"lora": "yes", "lora_with_bias": "PEFT", "adapter": "no"}
_RIGHT = frozenset({"rank", "step", "share", "score", "params", "layers"})


def value_column(score: str) -> str:
    """Return the heading of a score's column."""
    return "share" if score_words(score).is_share else "score"


def standing_mark(ranking: Ranking, row: Candidate) -> str:
    """Return ``equal``, ``worse`` or nothing for what is undetermined; ``first`` where none is recommended.

    Args:
        ranking: The ranking.
        row: One of its candidates.

    Returns:
        The text of the last column.
    """
    if not recommends(ranking):
        return "first" if row.rank == 1 else ""
    found = standing(ranking, row.site)
    return "" if found is Standing.UNDETERMINED else found.value


def site_table(ranking: Ranking, limit: int | None = 10) -> TextTable:
    """Return the candidates, best first: all of them where ``limit`` is ``None``.

    Args:
        ranking: The ranking.
        limit: Most rows.

    Returns:
        The table, with notes on what its marks mean.
    """
    every = candidates(ranking)
    rows = every if limit is None else every[:limit]
    name = ranking.score
    notes = []
    if any(row.is_merged for row in rows):
        notes.append("'a = b': one vector with several names, the same edit of the stream.")
    if recommends(ranking) and any(not standing_mark(ranking, row) for row in rows):
        notes.append("No mark: the prompts cannot tell whether it is equal or worse.")
    as_lora = ("LoRA",) if any(row.site.served_as for row in rows) else ()
    if as_lora:
        notes.append(
            "LoRA: whether the edit is exactly one (a linear edit without its bias), so that vLLM, SGLang and PEFT "
            "serve it; PEFT: one with a bias, which PEFT alone runs."
        )
    return TextTable(
        title=f"First {len(rows)} of {len(every):,} candidates"
        if len(rows) < len(every)
        else f"All {count(len(rows), 'candidate')}",
        columns=("rank", "site", "family", value_column(ranking.score), "95% interval", "params", *as_lora, ""),
        right=_RIGHT,
        rows=tuple(
            (
                str(row.rank),
                row.label,
                clean(row.site.family, 12),
                format_score(row.site.score, name),
                format_interval(row.site.ci_low, row.site.ci_high, name),
                f"{row.site.n_params:,}",
                *((_SERVED.get(row.site.served_as or "", ""),) if as_lora else ()),
                standing_mark(ranking, row),
            )
            for row in rows
        ),
        note=" ".join(notes),
    )


def by_score(ranking: Ranking, score: str) -> str:
    """Name a table's score where it is not the ranking's.

    Args:
        ranking: The ranking.
        score: Name of the table's score.

    Returns:
        A part of a title, or an empty string.
    """
    return "" if score == ranking.score else f", by the {score_words(score).label}"


def kind_table(ranking: Ranking, limit: int | None = 5) -> TextTable:
    """Return the kinds of site, each steered at all layers at once, best first.

    Args:
        ranking: The ranking.
        limit: Most rows; ``None`` for all.

    Returns:
        The table, without rows where no kinds were ranked.
    """
    every = kind_candidates(ranking)
    name = score_of_kinds(ranking)
    what = "Kinds" if limit is None or limit >= len(every) else f"First {limit} of {len(every)} kinds"
    return TextTable(
        title=f"{what}, steered at all layers at once{by_score(ranking, name)}",
        columns=("rank", "kind", "family", value_column(name), "95% interval", "params", "layers"),
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
    name = ranking.set_score
    return TextTable(
        title=f"Greedy set{by_score(ranking, name)}: numbers are those of the whole set so far",
        columns=("step", "adds", "family", value_column(name), "95% interval", "params"),
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
    """Return the tables that have rows, in the order they are printed.

    Args:
        ranking: The ranking.
        limit: Most rows of the table of sites.

    Returns:
        One to three tables.
    """
    every = [site_table(ranking, limit), kind_table(ranking), greedy_table(ranking)]
    return [table for table in every if table.rows]


def summary(ranking: Ranking, *, verbose: bool = False) -> list[str]:
    """Return the answer: headline, what is behind it, evidence, warnings and the next step.

    Args:
        ranking: The ranking to report.
        verbose: Say how sure each part is, too.

    Returns:
        Paragraphs in the order in which they are printed.
    """
    certainty, evidence = certainty_sentences(ranking), evidence_sentence(ranking)
    behind = certainty if verbose else [evidence]
    if not ranking.stability.can_tell:
        behind = [certainty[0], *(sentence for sentence in behind if sentence != certainty[0])]
    said = [headline(ranking), *answer_sentences(ranking), *behind]
    said += [f"Warning: {sentence}" for sentence in warning_sentences(ranking)]
    step = next_step(ranking)
    return said if step is None else [*said, f"Next: {step.merging}".strip(), *step.lines]


def format_summary(ranking: Ranking, *, verbose: bool = False, width: int = WIDTH) -> str:
    """Return the answer as text; lines to copy are kept whole.

    Args:
        ranking: The ranking to report.
        verbose: Say how sure each part is, too.
        width: Columns at which sentences are wrapped.

    Returns:
        Text without a line break at the end.
    """
    step = next_step(ranking)
    whole = set(step.lines) if step else set()
    return "\n".join(
        f"  {line}" if line in whole else textwrap.fill(line, width, break_on_hyphens=False)
        for line in summary(ranking, verbose=verbose)
    )


def print_ranking(ranking: Ranking, *, limit: int = 8, file: TextIO | None = None, verbose: bool = False) -> None:
    """Print the first sites and, last, the answer: rich where ``file`` is a terminal, plain text in a pipe.

    A terminal with colours shows the map of all sites first.

    Args:
        ranking: The ranking to print.
        limit: Number of sites to print, best first.
        file: Where to print; standard output by default.
        verbose: Print kinds and greedy set, and how sure each part of the answer is, too.
    """
    out = sys.stdout if file is None else file
    shown = tables(ranking, limit) if verbose else [table for table in [site_table(ranking, limit)] if table.rows]
    if not out.isatty():
        out.write("\n\n".join([*map(plain_table, shown), format_summary(ranking, verbose=verbose)]) + "\n")
        return
    console = Console(file=out, highlight=False)
    if console.color_system is not None:
        for line in map_lines(ranking, console.width):
            console.print(line, no_wrap=True)
    for table in shown:
        console.print(rich_table(table))
    first = headline(ranking)
    console.print(Text(first, style="bold"))
    rest = format_summary(ranking, verbose=verbose, width=min(WIDTH, console.width))
    head = textwrap.fill(first, min(WIDTH, console.width), break_on_hyphens=False)
    console.print(Text(rest.removeprefix(head).removeprefix("\n")), soft_wrap=True)
