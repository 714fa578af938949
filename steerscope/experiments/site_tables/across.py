"""Over several tables: how much better one score is than another on average."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steerscope.errors import InputError
from steerscope.experiments.agreement.layer_bootstrap import Estimate, mean_of
from steerscope.experiments.site_tables.judging import DEPTH, DEPTH_THEN_KIND, Judgement


def mean_of_independent(found: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent estimates with its interval: over these studies, not over others like them."""
    mean = sum(one.value for one in found) / len(found)
    below = math.hypot(*(one.value - one.low for one in found)) / len(found)
    above = math.hypot(*(one.high - one.value for one in found)) / len(found)
    return Estimate(mean, mean - below, mean + above)


def mean_of_drawn(found: Sequence[Estimate]) -> Estimate | None:
    """Return the mean with Student's interval over studies taken for a draw of many; None from fewer than two."""
    return mean_of([one.value for one in found]) if len(found) > 1 else None


def margins_over(judgements: Sequence[Judgement], score: str, baseline: str, *, both: bool = False) -> list[Estimate]:
    """Return a score's Spearman minus that of a baseline fixed in advance, per table.

    Args:
        judgements: One per table.
        score: Its name.
        baseline: ``depth`` or ``depth_then_kind``.
        both: Of J, the number that takes pairs within layers in too, instead of Spearman.

    Returns:
        One difference with its interval per table, in the order of the tables.

    Raises:
        InputError: Another baseline, or a table without the score.
    """
    if baseline not in (DEPTH, DEPTH_THEN_KIND):
        raise InputError(f"baseline is {baseline!r}; expected {DEPTH!r} or {DEPTH_THEN_KIND!r}.")
    if missing := [one.table for one in judgements if score not in one.scores]:
        raise InputError(f"the table of {missing[0]} has no score {score!r}.")
    own = [one.scores[score] for one in judgements]
    return [one.both.margins[baseline] if both else one.agreement.margins[baseline] for one in own]
