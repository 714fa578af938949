r"""The rule: when runs reproduce a comparison of two methods, when they do not, and when they cannot decide.

Both methods were trained with the same seeds and answered the same questions. With :math:`a_{sq}, b_{sq}` right (1) or
wrong (0) on question q after seed s, let :math:`d_s` be the difference of accuracies of one seed, and :math:`e_q` that
of one question averaged over seeds. The interval of the mean difference is

.. math:: \bar d \pm \sqrt{t_{S-1}^2\, \mathrm{var}(d_s) / S + 1.96^2\, \mathrm{var}(e_q) / n}

with the 97.5% point t of Student's distribution: seeds and questions both vary. What single answers vary by enters both
terms, so the interval is on the wide side.

A claim says that the difference lies above a bound: minus one point (0.01) for "at least as good", zero for "better".
It is **reproduced** if the whole interval is above its bound, **not reproduced** if the whole interval is below it, and
**undecided** if the bound is inside. So either word errs with at most 2.5%, and what is as surely short of the bound as
something else is beyond it is held against the claim as surely as the other counts for it. The margin is part of the
claim and not of the evidence: without one, two equal methods could never be told from one that is a little worse, and a
second bound for "not reproduced", at zero say, would count against a claim a loss that it allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from steerscope.errors import InputError
from steerscope.experiments.comparison.groups import Entry
from steerscope.experiments.runs.folder import GENERATIONS, read_results
from steerscope.files import parse_json

MIN_SEEDS = 3
MARGIN = 0.01
NORMAL = 1.96
BUDGET = ("learning_rate", "tries", "lr_steps", "validation_examples")
REPRODUCED, NOT, UNDECIDED = "reproduced", "not reproduced", "undecided"
# What an undecided comparison says all the same.
WITHIN = "equal within a point"


@dataclass(frozen=True)
class Difference:
    """Accuracy of one method minus that of another, with the interval of the rule.

    Attributes:
        mean: Over seeds and questions.
        low: Lower end; minus infinity with fewer than three seeds.
        high: Upper end.
        seeds: How many both have.
        n: Test questions.
        of_seeds: Standard deviation over seeds of a seed's difference; NaN with fewer than three.
        of_questions: Standard deviation over questions of a question's difference averaged over seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int
    n: int
    of_seeds: float = math.nan
    of_questions: float = math.nan

    def __str__(self) -> str:
        if self.seeds < MIN_SEEDS:
            return f"{100 * self.mean:+.1f} ({self.seeds} {'seed' if self.seeds == 1 else 'seeds'})"
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one comparison, and why where it says nothing."""

    kind: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})" if self.reason else self.kind


def half_width(of_seeds: float, seeds: int, of_questions: float, n: int) -> float:
    """Return half the width of the rule's interval.

    Args:
        of_seeds: Standard deviation over seeds.
        seeds: How many, at least two.
        of_questions: Standard deviation over questions.
        n: How many.
    """
    return math.hypot(
        float(student.ppf(0.975, seeds - 1)) * of_seeds / math.sqrt(seeds), NORMAL * of_questions / math.sqrt(n)
    )


def difference(first: Entry, second: Entry) -> Difference | None:
    """Return the difference over the seeds both have, or ``None`` where they share none.

    Raises:
        InputError: Generations are missing, damaged, or of other questions.
    """
    ours, theirs = by_seed(first), by_seed(second)
    seeds = sorted(set(ours) & set(theirs))
    return _difference([(ours[seed], theirs[seed]) for seed in seeds]) if seeds else None


def gain(trained: Entry, untrained: Entry) -> Difference:
    """Return the difference between a trained method and the model as it is, which has no seeds.

    Raises:
        InputError: Generations are missing, damaged, or of other questions.
    """
    return _difference([(folder, untrained.folders[0]) for folder in trained.folders])


def _difference(folders: Sequence[tuple[str, str]]) -> Difference:
    pairs = [(rights(one), rights(other)) for one, other in folders]
    keys = sorted(pairs[0][0])
    if any(one.keys() != pairs[0][0].keys() for pair in pairs for one in pair):
        raise InputError(f"{folders[0][0]!r} and {folders[0][1]!r} answered other questions. Evaluate them alike.")
    ours, theirs = (np.array([[one[key] for key in keys] for one in side]) for side in zip(*pairs, strict=True))
    apart = ours - theirs  # seed question
    mean, (count, n) = float(apart.mean()), apart.shape
    of_questions = float(apart.mean(0).std(ddof=1)) if n > 1 else 1.0
    if count < MIN_SEEDS:
        return Difference(mean, -math.inf, math.inf, count, n, of_questions=of_questions)
    of_seeds = float(apart.mean(1).std(ddof=1))
    half = half_width(of_seeds, count, of_questions, n)
    return Difference(mean, mean - half, mean + half, count, n, of_seeds, of_questions)


def bound_of(strict: bool) -> float:
    """Return what a difference has to exceed: 0 for "better", minus the margin for "at least as good"."""
    return 0.0 if strict else -MARGIN


def verdict(found: Difference | None, *, strict: bool, blocked: str = "") -> Verdict:
    """Return what the rule says.

    Args:
        found: The difference.
        strict: Whether the claim is "better" rather than "at least as good".
        blocked: Why the comparison decides nothing whatever its numbers, if it does not.
    """
    if found is None or found.seeds < MIN_SEEDS:
        return Verdict(UNDECIDED, "fewer than three seeds in common")
    if blocked:
        return Verdict(UNDECIDED, blocked)
    bound = bound_of(strict)
    if found.low > bound:
        return Verdict(REPRODUCED)
    if found.high < bound:
        return Verdict(NOT)
    return Verdict(UNDECIDED, WITHIN if found.low > -MARGIN and found.high < MARGIN else "")


def why_unfair(first: Entry, second: Entry) -> str:
    """Return why a comparison of two is not fair, or nothing.

    It is fair if both searched their learning rate with the same budget, and no winner was at the edge of the search.
    The budget is also how many seeds searched: all for themselves, or one for all, the same on both sides.
    """
    one, two = ({name: entry.settings.get(name) for name in BUDGET} for entry in (first, second))
    ours, theirs = _searchers(first), _searchers(second)
    if one != two or one["learning_rate"] != "auto" or any(ours[s] != theirs[s] for s in {*ours} & {*theirs}):
        return "learning rates not searched alike"
    edges = [which for which, entry in (("first", first), ("second", second)) if not is_interior(entry)]
    return f"the learning rate of the {' and the '.join(edges)} is at the edge of the search" if edges else ""


def _searchers(entry: Entry) -> dict[int, int]:
    """Return, by seed, the seed whose search gave the learning rate."""
    found = by_seed(entry).items()
    return {seed: read_results(folder).training.get("learning_rate_of_seed", seed) for seed, folder in found}


def is_interior(entry: Entry) -> bool:
    """Whether every searched learning rate had a worse neighbour on both sides."""
    return all(read_results(folder).training.get("learning_rate_is_interior") for folder in entry.folders)


@cache
def rights(folder: str) -> Mapping[str, int]:
    """Return, per question, whether it was answered rightly; a question asked twice has a key for each time.

    Returns:
        1 for right and 0 for wrong, by question.

    Raises:
        InputError: The file is missing or damaged.
    """
    found: dict[str, int] = {}
    try:
        # Not splitlines(): texts may hold other characters that end a line.
        for line in (Path(folder) / GENERATIONS).read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            row = parse_json(line)
            times = sum(key.rpartition("#")[0] == row["key"] for key in found) if f"{row['key']}#0" in found else 0
            found[f"{row['key']}#{times}"] = int(row["is_right"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder!r} has no readable {GENERATIONS} ({error}). Run it again.") from error
    return found


def by_seed(entry: Entry) -> dict[int, str]:
    """Return an entry's folders by seed."""
    return dict(zip(entry.seeds, entry.folders, strict=True))
