"""What it would take to decide: how much too wide an interval is, and how many seeds or questions would do.

Standard deviations and the mean are taken to stay what they are. More seeds also lower the standard deviation over
questions of the averaged difference, and more questions that over seeds, so the numbers are rather too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from studies.claims.rule import MARGIN, NORMAL, Difference, bound_of, half_width

MOST_SEEDS = 200
MOST_QUESTIONS = 200_000


@dataclass(frozen=True)
class Power:
    """What an undecided comparison lacks.

    Attributes:
        excess: How far the interval reaches past the bound, as a difference of shares.
        seeds: The least number that would decide with as many questions; ``None`` beyond 200.
        questions: The least number that would decide with as many seeds; ``None`` beyond 200,000.
        times: How many times as many of both would; ``None`` beyond 200.
    """

    excess: float
    seeds: int | None
    questions: int | None
    times: int | None

    def __str__(self) -> str:
        parts = [f"{self.seeds:,} seeds"] if self.seeds else []
        parts += [f"{self.questions:,} questions"] if self.questions else []
        if not parts and self.times:
            parts = [f"{self.times} times as many of both"]
        words = f"{' or '.join(parts)} would decide" if parts else "the mean is too near the bound"
        return f"{100 * self.excess:.1f} points too wide; {words}"


def power_of(found: Difference, *, strict: bool) -> Power:
    """Return what it would take to decide a comparison whose interval holds the bound.

    Args:
        found: The difference, of at least three seeds.
        strict: Whether the claim is "better".
    """
    distance = abs(found.mean - bound_of(strict))
    half = found.high - found.mean
    more = range(found.seeds + 1, MOST_SEEDS + 1)
    seeds = next((s for s in more if half_width(found.of_seeds, s, found.of_questions, found.n) < distance), None)
    room = distance**2 - half_width(found.of_seeds, found.seeds, 0.0, found.n) ** 2
    questions = math.ceil((NORMAL * found.of_questions) ** 2 / room) + 1 if room > 0 else None
    sides = (found.of_seeds, found.seeds, found.of_questions, found.n)
    both = (
        k for k in range(2, MOST_SEEDS + 1) if half_width(sides[0], k * sides[1], sides[2], k * sides[3]) < distance
    )
    within = questions if questions and questions <= MOST_QUESTIONS else None
    return Power(half - distance, seeds, within, next(both, None))


def chance_for_equals(half: float) -> float:
    """Return the chance that two equal methods are found to be at least as good as each other, to the first.

    Args:
        half: Half the width of the interval, a difference of shares.
    """
    return NormalDist().cdf((MARGIN - half) / (half / NORMAL)) if half else 1.0
