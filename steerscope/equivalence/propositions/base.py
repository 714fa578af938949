"""What a proposition is: a claim with its source, a tolerance fixed in advance, and a check that can fail.

A check returns :class:`Evidence`: what was measured for the claim, for negative controls (a wrong form, or the
claim with an assumption taken away: it must fall outside the tolerance, or the check proves nothing) and, where
the public statement differs from what is true, for that statement. :func:`verdict_of` turns evidence into a
verdict; no check decides its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerscope.equivalence.propositions.subject import Subject


class Verdict(StrEnum):
    """What the evidence says."""

    HOLDS = "holds"
    FAILS = "fails"
    CORRECTED = "holds with correction"
    NOT_APPLICABLE = "not applicable"


class Source(StrEnum):
    """Where a statement comes from. Nothing is called the paper's that is not in what could be read of it."""

    ABSTRACT = "abstract of arXiv 2603.00425"
    POST = "authors' post 'Activation Steering vs. Finetuning' (2025-11-26)"
    PRE_MLP_POST = "first author's post 'The Case for Pre-MLP Steering' (2026-03-05)"
    CODE = "authors' code"
    LITERATURE = "other published work"
    OURS = "this project"


@dataclass(frozen=True)
class Measurement:
    """One measured number and the interval, fixed in advance, that it has to fall into.

    ``of_subject`` is False where the number would be the same on any subject: it was measured on draws or on a small
    construction of the check's own.
    """

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf
    of_subject: bool = True

    @property
    def inside(self) -> bool:
        """Whether the value is a number inside the interval (NaN never is)."""
        return self.low <= self.value <= self.high

    def expected(self) -> str:
        """Return the interval in words."""
        if self.low == self.high:
            return f"{self.low:g}"
        if math.isinf(self.low):
            return f"at most {self.high:.3g}"
        if math.isinf(self.high):
            return f"at least {self.low:.3g}"
        return f"{self.low:.4g} to {self.high:.4g}"


@dataclass(frozen=True)
class Series:
    """A curve for a figure: ``y`` against ``x``, with the names of both axes (units included)."""

    x_name: str
    y_name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


def curve(x_name: str, x: Sequence[float], y_name: str, y: Sequence[float]) -> Series:
    """Return a series for a figure.

    Args:
        x_name: Label of the horizontal axis.
        x: Its values.
        y_name: Label of the vertical axis.
        y: As many values.

    Returns:
        The values as plain floats.
    """
    return Series(x_name, y_name, tuple(map(float, x)), tuple(map(float, y)))


@dataclass(frozen=True)
class Evidence:
    """What a check found on one subject.

    Attributes:
        claim: Measurements of the statement in the form that should hold; all must be inside.
        controls: Negative controls, measured against the claim's own tolerance; all must be outside.
        published: Measurements of the public statement where it differs from ``claim`` (wrong form beside right).
        inapplicable: Why it cannot be asked of this subject (no gate in a plain MLP); "" if it can.
        limit: Within which limits the statement, though it holds, says something here; "" where nothing limits it.
        notes: What a reader should know (a kink was crossed, a condition number).
        series: Curves by name.
    """

    claim: tuple[Measurement, ...] = ()
    controls: tuple[Measurement, ...] = ()
    published: tuple[Measurement, ...] = ()
    inapplicable: str = ""
    limit: str = ""
    notes: tuple[str, ...] = ()
    series: Mapping[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposition:
    """One statement, ready to be tried.

    Attributes:
        number: Its number in docs/theory.md, 1 to 46.
        group: Name of its group, for the table.
        title: A few words.
        claim: One sentence in plain words, with the formula.
        assumptions: What the claim needs.
        source: Who says so.
        check: Computes the evidence on a subject; seeded by the subject, no other randomness.
        published: The public statement where it is wrong or incomplete; "" otherwise.
    """

    number: int
    group: str
    title: str
    claim: str
    assumptions: str
    source: Source
    check: Callable[[Subject], Evidence] = field(repr=False)
    published: str = ""

    @property
    def name(self) -> str:
        """``P7``."""
        return f"P{self.number}"


def verdict_of(evidence: Evidence) -> Verdict:
    """Return the verdict that evidence supports.

    ``not applicable`` if the statement cannot be asked of this subject. Else ``fails`` if a claim's measurement is
    outside its interval, if there is none, or if a negative control is inside (the check could not have failed). Then
    ``holds with correction`` if the public form is outside, else ``holds``. A statement that holds within limits
    holds; ``Evidence.limit`` says within which.
    """
    if evidence.inapplicable:
        return Verdict.NOT_APPLICABLE
    sound = bool(evidence.claim) and bool(evidence.controls)
    if not sound or not all(m.inside for m in evidence.claim) or any(m.inside for m in evidence.controls):
        return Verdict.FAILS
    if not all(m.inside for m in evidence.published):
        return Verdict.CORRECTED
    return Verdict.HOLDS


def together(parts: Sequence[Evidence]) -> Evidence:
    """Return all measurements, notes and curves of several parts of a check."""
    return Evidence(
        claim=tuple(one for part in parts for one in part.claim),
        controls=tuple(one for part in parts for one in part.controls),
        notes=tuple(note for part in parts for note in part.notes),
        series={name: series for part in parts for name, series in part.series.items()},
    )


def joined(found: Mapping[str, Evidence]) -> Evidence:
    """Return what a check found on several subjects as one: every measurement counts, under its subject's name.

    A subject of which the statement cannot be asked is left out, and named in a note; if it can be asked of none, so
    of all together.

    Args:
        found: Evidence by the subject's name.

    Returns:
        The evidence itself if there is one subject.
    """
    if len(found) == 1:
        return next(iter(found.values()))
    reasons = _joined_words({name: one.inapplicable for name, one in found.items()})
    asked = {name: one for name, one in found.items() if not one.inapplicable}
    if not asked:
        return Evidence(inapplicable=reasons)

    def named(role: str) -> tuple[Measurement, ...]:
        return tuple(replace(m, name=f"{name}: {m.name}") for name, one in asked.items() for m in getattr(one, role))

    return Evidence(
        claim=named("claim"),
        controls=named("controls"),
        published=named("published"),
        limit=_joined_words({name: one.limit for name, one in asked.items()}),
        notes=(
            *(f"{name}: {note}" for name, one in asked.items() for note in one.notes),
            *([f"not asked of {reasons}"] if reasons else []),
        ),
        series={f"{name}: {key}": series for name, one in asked.items() for key, series in one.series.items()},
    )


def _joined_words(words: Mapping[str, str]) -> str:
    """Return the same words once, different ones each under its subject's name."""
    said = {name: text for name, text in words.items() if text}
    if len(said) == len(words) and len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{name}: {text}" for name, text in said.items())
