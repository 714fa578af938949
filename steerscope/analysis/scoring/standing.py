"""How a candidate stands to the best one: equal within a margin, worse, or neither can be said."""

from __future__ import annotations

from enum import StrEnum

MARGIN = 0.05
"""Candidates this close to the best, as a part of its score, are one answer.

A choice, not a measurement: a twentieth is more than the sketches' error and less than what tells a good layer from a
bad one."""


class Standing(StrEnum):
    """What the paired interval of the difference to the best candidate says.

    ``EQUAL``: all of it is below the margin. ``WORSE``: all of it is above zero, and it is not equal. ``UNDETERMINED``:
    it holds both zero and differences that would matter, so more prompts could decide.
    """

    EQUAL = "equal"
    WORSE = "worse"
    UNDETERMINED = "undetermined"


def standing_of(low: float, high: float, margin: float) -> Standing:
    """Return the standing of a candidate.

    Args:
        low: Lower end of the interval of the best score minus its own.
        high: Upper end.
        margin: Largest difference that does not matter, in the score's unit.

    Returns:
        Equal, undetermined or worse.
    """
    if high <= margin:
        return Standing.EQUAL
    return Standing.WORSE if low > 0 else Standing.UNDETERMINED
