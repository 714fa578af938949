"""How results show themselves: a line where Python shows a value, a screen where it is printed."""

from __future__ import annotations

import html
import textwrap
from abc import abstractmethod
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from steerscope.installed import require

WIDTH, LINES = 100, 24


class Shown:
    """A result with a headline, a text, and rows of one sort.

    ``repr()`` is one line, ``str()`` and a notebook's output one screen; ``to_json()`` and the reports have everything.
    A class that names its room in ``steerscope.reports`` (``class Ranking(Shown, report="ranking")``) is put into words
    there: reports stand above results, so theirs is found by its name, when something is printed.
    """

    _report = ""

    def __init_subclass__(cls, report: str = "", **others: Any) -> None:
        super().__init_subclass__(**others)
        cls._report = report or cls._report

    def headline(self) -> str:
        """Return what came out in one sentence, of a line or two."""
        return str(self._screen().headline(self))

    def paragraphs(self) -> list[str]:
        """Return what is printed: sentences, which are wrapped, and tables, whose lines are kept."""
        return list(self._screen().paragraphs(self)) if self._report else [self.headline()]

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """Return one dictionary per row, all with the same keys, in the result's own order."""

    def to_dataframe(self) -> Any:
        """Return :meth:`records` as a pandas ``DataFrame``.

        Raises:
            InputError: The extra ``frames`` is not installed.
        """
        require("frames", "to_dataframe()")
        import pandas

        return pandas.DataFrame.from_records(self.records())

    def _screen(self) -> ModuleType:
        return import_module(f"steerscope.reports.{self._report}.screen")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {textwrap.shorten(self.headline(), 160, placeholder=' ...')}>"

    def __str__(self) -> str:
        return screen(self.paragraphs())

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ..."


def screen(paragraphs: Sequence[str]) -> str:
    """Return a text of at most :data:`LINES` lines of :data:`WIDTH` columns; what does not fit is counted.

    Args:
        paragraphs: Of several lines where their breaks are to be kept.
    """
    lines: list[str] = []
    for text in paragraphs:
        kept = "\n" in text
        lines += [""] if kept and lines else []
        wrapped = (
            [_cut(line) for line in text.split("\n")]
            if kept
            else textwrap.wrap(text, WIDTH, break_on_hyphens=False) or [""]
        )
        lines += [line.rstrip() for line in wrapped]
    if len(lines) > LINES:
        left = len(lines) - LINES + 1
        lines = [*lines[: LINES - 1], f"... and {left} more lines"]
    return "\n".join(lines)
