"""What a page of a result is made of; one template draws all of them.

The order is that of a reader's questions: what came out, what to type next, how sure that is, the figures with their
tables, what was computed, and what it does not tell.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from steerscope.reports.page_folder import Drawn
from steerscope.reports.tables import TextTable
from steerscope.reports.vocabulary import clean

_HERE = Path(__file__).parent
_TEMPLATE, _STYLE, _SCRIPT = "page.html.jinja", "style.css", "page.js"
# Last cells by which a row is told from the others.
_MARKS = frozenset({"equal", "worse", "first", "fails"})
# Rows from which on a table can be sorted, and filtered.
SORTED_ROWS, FILTERED_ROWS = 4, 13

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fact:
    """One large number; ``bar`` is a share with the ends of its interval, as CSS percentages from 0 to 100."""

    label: str
    value: str
    note: str = ""
    bar: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Part:
    """Sentences, a table and named values that belong together, under a small heading if it has one."""

    heading: str = ""
    sentences: tuple[str, ...] = ()
    table: TextTable | None = None
    pairs: Pairs = ()


@dataclass(frozen=True)
class Fold:
    """Parts that are shown when their summary is clicked."""

    summary: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Section:
    """A heading with a figure, parts below it, and what is folded away."""

    heading: str
    figure: str = ""
    parts: tuple[Part, ...] = ()
    folds: tuple[Fold, ...] = ()


@dataclass(frozen=True)
class Next:
    """Lines to copy."""

    heading: str
    lines: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A result's page.

    Attributes:
        title: Of the browser's tab.
        about: What the result is of, a few words each: model, task, size.
        headline: The answer, in one sentence.
        lead: What comes first below it; its first sentence is set larger.
        evidence: What training says, small print below the answer.
        next: Lines to copy, or ``None``.
        facts: Large numbers.
        warnings: What a reader must know before believing it.
        certainty: How sure the answer is.
        proof: Folded below these.
        sections: Figures and tables, in order. A section without figure, parts and folds is left out, and so is a
            figure that was not drawn.
        method: What was computed, folded.
        counted: A sentence above it.
        command: What makes the result again.
        caveats: What the result does not tell.
        file: Name of the result's JSON file.
        is_sure: Whether the headline is an answer, and not the sentence that there is none.
    """

    title: str
    about: tuple[str, ...]
    headline: str
    lead: tuple[str, ...] = ()
    evidence: str = ""
    next: Next | None = None
    facts: tuple[Fact, ...] = ()
    warnings: tuple[str, ...] = ()
    certainty: tuple[str, ...] = ()
    proof: tuple[Fold, ...] = ()
    sections: tuple[Section, ...] = ()
    method: tuple[Fold, ...] = ()
    counted: str = ""
    command: str = ""
    caveats: tuple[str, ...] = ()
    file: str = ""
    is_sure: bool = True


def render(page: Page, drawn: Sequence[Drawn[Any]]) -> str:
    """Return a page as HTML that loads nothing: styles and script inlined, figures as data URIs, every string escaped.

    Args:
        page: What it says.
        drawn: The figures that its sections name.

    Returns:
        The whole page as text. Its policy allows the one script by its hash, and nothing from outside.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        table_of=_table_values, named=_Names(), sorted_rows=SORTED_ROWS, filtered_rows=FILTERED_ROWS
    )
    script = (_HERE / _SCRIPT).read_text(encoding="utf-8")
    figures = {one.entry.stem: _figure_values(one) for one in drawn}
    shown = [one for one in page.sections if one.figure in figures or one.parts or one.folds]
    return environment.get_template(_TEMPLATE).render(
        page=page,
        sections=[(f"section-{i}", one) for i, one in enumerate(shown, 1)],
        figures=figures,
        css=(_HERE / _STYLE).read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


class _Names:
    """Tells things of one name apart: who hears a page goes by the names of its regions."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def __call__(self, name: str) -> str:
        self._given[name] += 1
        return name if self._given[name] == 1 else f"{name} ({self._given[name]})"


def _figure_values(one: Drawn[Any]) -> dict[str, Any]:
    # Data URIs rather than inline SVG: the figures' ids repeat and would collide in one document.
    return {
        "alt": one.entry.alt,
        "caption": one.entry.caption,
        "is_wide": one.entry.is_wide,
        "uri": "data:image/svg+xml;base64," + base64.b64encode(one.svg).decode("ascii"),
        "spots": "\n".join(spot.line for spot in one.spots),
    }


def _table_values(table: TextTable) -> dict[str, Any]:
    names = [name or "standing" for name in table.columns]
    left = [i for i, name in enumerate(table.columns) if name not in table.right]
    return {
        "title": table.title,
        "note": table.note,
        "columns": [
            {"name": shown, "right": name in table.right} for shown, name in zip(names, table.columns, strict=True)
        ],
        "head": left[0] if left else 0,  # the column that names a row
        "rows": [(row[-1] if row[-1] in _MARKS else "", row) for row in table.rows],
    }


def share_bar(value: float, low: float, high: float) -> dict[str, str]:
    """Return a share and its interval as CSS percentages of a bar from 0 to 100%.

    Args:
        value: The share, 1 for all.
        low: Lower end of its interval.
        high: Upper end.

    Returns:
        ``at``, ``low`` and ``width``.
    """
    at, left, right = (min(max(100 * number, 0.0), 100.0) for number in (value, low, high))
    return {"at": f"{at:.1f}", "low": f"{left:.1f}", "width": f"{right - left:.1f}"}


def setting_text(value: object) -> str:
    """Write a setting as text; mappings in sorted order, because a trip through JSON sorts them too."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting_text(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(key)} {setting_text(item)}" for key, item in sorted(value.items())) or "none"
    return "none" if value is None else clean(value)


def setting_pairs(items: Iterable[tuple[str, object]]) -> Pairs:
    """Return named values as printed pairs."""
    names = {"n_params": "parameters", "d_model": "width", "quantised": "weights"}
    return tuple((names.get(name) or clean(name).replace("_", " "), setting_text(value)) for name, value in items)


def settings_fold(groups: Mapping[str, Any]) -> tuple[Fold, ...]:
    """Return what was run, by group, folded away.

    Args:
        groups: Named values, or a record of them, by heading; what is ``None`` or an empty text, and groups without
            values, are left out.

    Returns:
        One fold, or none without values.
    """
    parts = []
    for heading, group in groups.items():
        values = group if isinstance(group, Mapping) else asdict(group)
        pairs = setting_pairs((key, values[key]) for key in sorted(values) if values[key] not in (None, ""))
        if pairs:
            parts.append(Part(heading, pairs=pairs))
    summary = ", ".join(part.heading for part in parts)
    return (Fold(summary[:1].upper() + summary[1:].lower(), tuple(parts)),) if parts else ()
