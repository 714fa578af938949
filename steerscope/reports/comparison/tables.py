"""A comparison in a terminal: a rich table on a screen, plain aligned text in a pipe."""

from __future__ import annotations

from typing import TextIO

from steerscope.experiments.comparison.groups import Comparison, Entry
from steerscope.reports.tables import TextTable, print_tables
from steerscope.reports.vocabulary import clean

_RIGHT = frozenset({"rank", "params", "seeds", "test", "sd", "memory", "time"})


def print_comparison(comparison: Comparison, *, file: TextIO | None = None) -> None:
    """Print a comparison: rich where ``file`` is a terminal, plain text in a pipe.

    Args:
        comparison: The comparison.
        file: Where it is printed; standard output unless given.
    """
    print_tables([], [comparison_table(comparison)], file)


def comparison_table(comparison: Comparison) -> TextTable:
    """Return one row per configuration, best first."""
    several = len({entry.model for entry in comparison.entries}) > 1
    columns = ("method", "site", "rank", "params", "seeds", "test", "95% interval", "sd", "memory")
    rows = []
    for entry in comparison.entries:
        method = " ".join((entry.method, *entry.setting_words))
        name = clean(f"{method}, {entry.model}" if several else method, 48)
        rows.append((name, *_cells(entry)))
    return TextTable(
        title=f"{clean(comparison.task, 40)}: accuracy on {comparison.n:,} test questions "
        f"(majority {comparison.majority:.1%})",
        columns=(*columns, "time"),
        right=_RIGHT,
        rows=tuple(rows),
        note="Interval: Wilson's 95% of the mean over seeds at the number of questions; seeds answer the same ones, so "
        "they are not pooled. sd: over seeds." + (f" {comparison.data_note}" if comparison.data_note else ""),
    )


def _cells(entry: Entry) -> tuple[str, ...]:
    return (
        entry.site_words,
        "-" if entry.rank is None else str(entry.rank),
        f"{entry.parameters:,}",
        str(len(entry.seeds)),
        f"{entry.accuracy:.1%}",
        f"[{entry.low:.1%}, {entry.high:.1%}]",
        "-" if entry.spread is None else f"{entry.spread:.1%}",
        "-" if entry.peak_memory is None else f"{entry.peak_memory / 2**30:.1f}G",
        duration(entry.seconds),
    )


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}min" if seconds < 6000 else f"{seconds / 3600:.1f}h"
