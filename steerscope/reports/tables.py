"""Tables of strings: rich ones on a screen, plain aligned text in a pipe."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerscope.reports.vocabulary import clean

WIDTH = 100


@dataclass(frozen=True)
class TextTable:
    """A titled table of strings; ``right`` names the columns that align right."""

    title: str
    columns: tuple[str, ...]
    right: frozenset[str]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def plain_table(table: TextTable) -> str:
    """Return a table as aligned text: no box characters, no ANSI, at most ``WIDTH`` columns."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    # The column of names is the only one of unbounded length: it alone gives way.
    spare = WIDTH - 2 * len(widths) - sum(widths) + widths[1]
    widths[1] = min(widths[1], max(spare, 16))

    def row(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in table.right else clean(cell, width).ljust(width)
            for cell, width, column in zip(cells, widths, table.columns, strict=True)
        ]
        return "  ".join(padded).rstrip()

    note = [textwrap.fill(table.note, WIDTH)] if table.note else []
    return "\n".join([table.title, *(row(line) for line in lines), *note])


def rich_table(table: TextTable) -> Table:
    """Return a table for a terminal; cells are ``Text``, so that markup in names stays text."""
    drawn = Table(
        title=Text(table.title, style="bold"),
        caption=Text(table.note) if table.note else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in table.columns:
        drawn.add_column(
            column,
            justify="right" if column in table.right else "left",
            no_wrap=column not in {"site", "kind", "adds", "claim"},
        )
    for cells in table.rows:
        drawn.add_row(*(Text(cell) for cell in cells), style="bold" if cells[-1] == "best" else "")
    return drawn


def print_tables(
    said: Sequence[str], tables: Sequence[TextTable], file: TextIO | None = None, *, style: str = ""
) -> None:
    """Print sentences and then tables: with colours on a terminal, as plain text elsewhere.

    Args:
        said: Sentences, each a paragraph.
        tables: The tables.
        file: Where they are printed; standard output unless given.
        style: Of the sentences on a terminal.
    """
    out = sys.stdout if file is None else file
    text = "\n".join(textwrap.fill(one, WIDTH, break_on_hyphens=False) for one in said)
    if not out.isatty():
        out.write("\n\n".join([*([text] if text else []), *map(plain_table, tables)]) + "\n")
        return
    console = Console(file=out, highlight=False)
    if text:
        console.print(Text(text, style=style), soft_wrap=True)
    for table in tables:
        console.print(rich_table(table))
