"""How the report names and prints things: scores in plain words, numbers, names from strangers.

The terminal, the page and the figures all print through this file, so that one number never appears in two
spellings.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steerscope.analysis.scoring.scores import all_scores
from steerscope.site_kinds import SITE_KINDS, SiteKind

KIND_ORDER: tuple[str, ...] = tuple(kind.value for kind in SiteKind)
_KIND_MEANINGS: dict[str, str] = {kind.value: facts.meaning for kind, facts in SITE_KINDS.items()}


@dataclass(frozen=True)
class ScoreWords:
    """A score in plain words; ``is_share`` says that it is a fraction and prints as a percentage."""

    label: str
    description: str
    is_share: bool = False


def score_words(name: str) -> ScoreWords:
    """Return the words of a score; one that is unknown here (of a file from elsewhere) is described by its name."""
    known = {score.name: score for score in all_scores()}
    if name not in known:
        return ScoreWords(clean(name).replace("_", " "), "no description of this score is known")
    return ScoreWords(known[name].label, known[name].meaning, known[name].is_share)


def kind_meaning(kind: str) -> str:
    """Return what a kind of site is in plain words, or an empty string for an unknown kind."""
    return _KIND_MEANINGS.get(kind, "")


def ordered_kinds(kinds: Iterable[str]) -> list[str]:
    """Return the distinct kinds in the order a block computes them; unknown ones last, by name."""
    position = {kind: index for index, kind in enumerate(KIND_ORDER)}
    return sorted(set(kinds), key=lambda kind: (position.get(kind, len(position)), kind))


def clean(text: object, limit: int | None = None) -> str:
    """Return text that is safe to print: model and task names come from strangers.

    Control characters could move a terminal's cursor, format characters reverse the reading direction, and lone
    surrogates cannot be encoded; all become spaces, and runs of white space become one.

    Args:
        text: Anything with a ``str``.
        limit: Longest result; longer text loses its middle, where names carry least.

    Returns:
        One line of printable text.
    """
    printable = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in str(text))
    line = " ".join(printable.split())
    if limit is None or len(line) <= limit:
        return line
    tail = (limit - 2) // 2
    return f"{line[: limit - 2 - tail]}..{line[len(line) - tail :]}"


def format_score(value: float, name: str) -> str:
    """Write a score: shares as percentages with one decimal, others with three significant digits.

    Args:
        value: The score.
        name: Name of the score, which decides its unit.

    Returns:
        The number as text.

    Example:
        >>> format_score(0.3312, "learnable_share"), format_score(0.3312, "gradient_norm")
        ('33.1%', '0.331')
    """
    if not score_words(name).is_share:
        text = f"{value:.3g}"
        return "0" if text == "-0" else text
    text = f"{100 * value:,.1f}%"
    return "0.0%" if text == "-0.0%" else text


def format_interval(low: float, high: float, name: str) -> str:
    """Write an interval, ``33.1% to 43.0%``: a dash would be misread beside negative shares.

    One of a share ends at 100%, also in files of before.

    Args:
        low: Lower end.
        high: Upper end.
        name: Name of the score, which decides its unit.

    Returns:
        The interval as text.
    """
    if score_words(name).is_share and low <= 1:
        high = min(high, 1.0)
    return f"{format_score(low, name)} to {format_score(high, name)}"


def format_difference(value: float, name: str) -> str:
    """Write the difference of two scores; shares differ in percentage points.

    Args:
        value: The difference.
        name: Name of the score, which decides its unit.

    Returns:
        The difference as text.
    """
    if score_words(name).is_share:
        return f"{100 * value:,.1f} percentage points"
    return format_score(value, name)


def count(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 prompt``, ``9,216 parameters``.

    Args:
        number: How many.
        noun: The noun in the singular; its plural ends in ``s``.

    Returns:
        Number and noun.

    Example:
        >>> count(1, "prompt"), count(9216, "parameter")
        ('1 prompt', '9,216 parameters')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listing(words: Sequence[str], limit: int = 6) -> str:
    """Write a list as prose, ``a, b and c``; what exceeds ``limit`` becomes ``and 4 more``.

    Args:
        words: What is listed, at least one.
        limit: Most words that are written out.

    Returns:
        The list as text.

    Example:
        >>> listing(["a", "b", "c"]), listing(["a", "b", "c"], limit=2)
        ('a, b and c', 'a, b and 1 more')
    """
    shown = list(words[:limit])
    if len(words) > limit:
        return f"{', '.join(shown)} and {len(words) - limit:,} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def axis_scale(name: str) -> tuple[float, str]:
    """Return what to multiply a score by to draw it, and the unit to print on the axis."""
    return (100.0, " (%)") if score_words(name).is_share else (1.0, "")


def is_close(first: float, second: float) -> bool:
    """Say whether two scores are one number computed twice (kernels are built in float32).

    Args:
        first: One score.
        second: The other score.

    Returns:
        Whether they differ by rounding only.
    """
    return math.isclose(first, second, rel_tol=1e-5, abs_tol=1e-6)
