"""What a proposition is: a claim with its source, a tolerance fixed in advance, and a check that can fail.

A check returns :class:`Evidence`: what was measured for the claim, for negative controls (a wrong form, or the
claim with an assumption taken away: it must fall outside the tolerance, or the check proves nothing) and, where
the public statement differs from what is true, for that statement. :func:`verdict_of` turns evidence into a
verdict; no check decides its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerscope.equivalence.propositions.subject import Subject


class Verdict(StrEnum):
    """What the evidence says."""

    HOLDS = "holds"
    FAILS = "fails"
    CORRECTED = "holds with correction"
    VACUOUS = "vacuous here"


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
    """One measured number and the interval, fixed in advance, that it has to fall into."""

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf

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


@dataclass(frozen=True)
class Evidence:
    """What a check found on one subject.

    Attributes:
        claim: Measurements of the statement in the form that should hold; all must be inside.
        controls: Negative controls, measured against the claim's own tolerance; all must be outside.
        published: Measurements of the public statement where it differs from ``claim`` (wrong form beside right).
        vacuous: Why the statement says nothing on this subject; "" if it does.
        inapplicable: Why it cannot be asked of this subject at all (no gate in a plain MLP); "" if it can.
        notes: What a reader should know (a kink was crossed, a condition number).
        series: Curves by name.
    """

    claim: tuple[Measurement, ...] = ()
    controls: tuple[Measurement, ...] = ()
    published: tuple[Measurement, ...] = ()
    vacuous: str = ""
    inapplicable: str = ""
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

    ``fails`` if a claim's measurement is outside its interval, if there is none, or if a negative control is
    inside (the check could not have failed). Then ``vacuous here`` if the statement says nothing on this subject,
    ``holds with correction`` if the public form is outside, else ``holds``.
    """
    if evidence.inapplicable:
        return Verdict.VACUOUS
    sound = bool(evidence.claim) and bool(evidence.controls)
    if not sound or not all(m.inside for m in evidence.claim) or any(m.inside for m in evidence.controls):
        return Verdict.FAILS
    if evidence.vacuous:
        return Verdict.VACUOUS
    if not all(m.inside for m in evidence.published):
        return Verdict.CORRECTED
    return Verdict.HOLDS
