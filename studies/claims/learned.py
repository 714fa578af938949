"""Whether a group of runs may decide claims: training has to have learned what a constant answer does not know.

A group is admitted if the best of its methods with three seeds gains significantly over the untrained model, over
always giving the most frequent answer and, where answers are choices of one token, over the untrained model with the
best temperature and output bias. The interval is the rule's, at a level divided by the number of methods, of which the
best was chosen. A comparison of two methods decides only if at least one of them has learned in the same sense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, stdev

from scipy.stats import t as student

from steerscope.experiments.comparison.groups import Entry
from studies.claims.groups import Group
from studies.claims.rule import MIN_SEEDS, Difference, gain


@dataclass(frozen=True)
class Admission:
    """Whether a group may decide claims, and the numbers or what is missing in a sentence."""

    holds: bool
    sentence: str


def admission(group: Group) -> Admission:
    """Apply the rule to a group."""
    able = [entry for entry in group.trained if len(entry.seeds) >= MIN_SEEDS]
    if group.untrained is None:
        return Admission(False, "there is no run of the untrained model (method none).")
    if not able:
        return Admission(False, f"no method was trained with {MIN_SEEDS} seeds.")
    if group.needs_recalibrated:
        return Admission(
            False, "the recalibrated model was not measured (`python -m studies.claims.recalibrated RUN`)."
        )
    best = max(able, key=lambda entry: entry.accuracy)
    said, holds = [], True
    for what, found in gains(best, group, 0.05 / len(able)).items():
        holds &= found.low > 0
        said.append(f"{found} points over {what}")
    word = "gains" if holds else "does not surely gain:"
    return Admission(holds, f"the best of {len(able)} methods, {best.method}, {word} {', '.join(said)}.")


def has_learned(entry: Entry, group: Group) -> bool:
    """Whether a method gains significantly over all that is known without learning, at the usual level."""
    if len(entry.seeds) < MIN_SEEDS:
        return False
    return all(found.low > 0 for found in gains(entry, group, 0.05).values())


def gains(entry: Entry, group: Group, level: float) -> Mapping[str, Difference]:
    """Return what a method gains over the untrained model, one answer and the recalibrated model, as far as known.

    Args:
        entry: A method with at least three seeds.
        group: Its group.
        level: Chance that an interval misses the truth.
    """
    found = {}
    if group.untrained is not None:
        one = gain(entry, group.untrained)
        found["the untrained model"] = _at(one.mean, one.of_seeds, one.of_questions, one, level)
    shares = {"always the same answer": group.runs.majority, "the recalibrated model": group.recalibrated}
    for what, share in shares.items():
        if share is not None:
            n = group.runs.n
            # As if the two were asked other questions: what is known of the second is its share alone.
            spread = math.sqrt(sum(p * (1 - p) for p in (min(entry.accuracy, 1.0), share)))
            like = Difference(entry.accuracy - share, 0.0, 0.0, len(entry.seeds), n)
            found[what] = _at(like.mean, stdev(entry.accuracies), spread, like, level)
    return found


def _at(mean: float, of_seeds: float, of_questions: float, like: Difference, level: float) -> Difference:
    t = float(student.ppf(1 - level / 2, like.seeds - 1))
    z = NormalDist().inv_cdf(1 - level / 2)
    half = math.hypot(t * of_seeds / math.sqrt(like.seeds), z * of_questions / math.sqrt(like.n))
    return Difference(mean, mean - half, mean + half, like.seeds, like.n, of_seeds, of_questions)
