r"""The rule: when runs reproduce a claim about two methods, when they do not, and when they cannot decide.

Both methods were trained with the same seeds and answered the same questions. With :math:`a_{sq}, b_{sq}` right (1) or
wrong (0) on question q after seed s, let :math:`d_s` be the difference of accuracies of one seed, and :math:`e_q` that
of one question averaged over seeds. The interval of the mean difference is

.. math:: \bar d \pm \sqrt{t_{S-1}^2\, \mathrm{var}(d_s) / S + 1.96^2\, \mathrm{var}(e_q) / n}

with the 97.5% point t of Student's distribution: seeds and questions both vary. What single answers vary by enters both
terms, so the interval is on the wide side.

A claim "first is at least as good as second" is

* **not reproduced** if the whole interval is below zero;
* **reproduced** if the whole interval is above minus one point (0.01), and the first does not hold;
* **undecided** otherwise: fewer than three seeds in common, learning rates that were not searched with the same budget
  on both sides or of which one won at the edge of its search, a second side that training left below the untrained
  model (Wilson's interval wholly below what that reached: what beats a training that failed has shown nothing), or an
  interval that allows either.

A claim "first is better than second" is reproduced if the whole interval is above zero, not if it is below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student

from steerscope.errors import InputError
from steerscope.experiments.comparison.groups import Entry
from steerscope.experiments.runs.folder import GENERATIONS, read_results
from steerscope.files import parse_json

MIN_SEEDS = 3
MARGIN = 0.01
BUDGET = ("learning_rate", "tries", "lr_steps", "validation_examples")


@dataclass(frozen=True)
class Difference:
    """Accuracy of one method minus that of another, with the interval of the rule."""

    mean: float
    low: float
    high: float
    seeds: int
    n: int

    def __str__(self) -> str:
        if self.seeds < MIN_SEEDS:
            return f"{100 * self.mean:+.1f} ({self.seeds} seeds)"
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def difference(first: Entry, second: Entry) -> Difference | None:
    """Return the difference over the seeds both have, or ``None`` where they share none.

    With fewer than three seeds the interval is infinite.

    Raises:
        InputError: Generations are missing, damaged, or of other questions.
    """
    ours, theirs = _by_seed(first), _by_seed(second)
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    pairs = [(rights(ours[seed]), rights(theirs[seed])) for seed in seeds]
    keys = sorted(pairs[0][0])
    if any(sorted(one) != keys for pair in pairs for one in pair):
        raise InputError(f"{ours[seeds[0]]!r} and {theirs[seeds[0]]!r} answered other questions. Evaluate them alike.")
    by_seed = [fmean(a[key] - b[key] for key in keys) for a, b in pairs]
    by_question = [fmean(a[key] - b[key] for a, b in pairs) for key in keys]
    mean, count = fmean(by_seed), len(seeds)
    if count < MIN_SEEDS:
        return Difference(mean, -math.inf, math.inf, count, len(keys))
    of_seeds = float(student.ppf(0.975, count - 1)) * stdev(by_seed) / math.sqrt(count)
    of_questions = 1.96 * (stdev(by_question) if len(keys) > 1 else 1.0) / math.sqrt(len(keys))
    half = math.hypot(of_seeds, of_questions)
    return Difference(mean, mean - half, mean + half, count, len(keys))


def verdict(found: Difference | None, *, strict: bool, fair: bool, learned: bool = True) -> str:
    """Return what the rule says.

    Args:
        found: The difference.
        strict: Whether the claim is "better" rather than "at least as good".
        fair: Whether learning rates were searched alike.
        learned: Whether training did not leave the second side below the untrained model.
    """
    if found is None or found.seeds < MIN_SEEDS:
        return "undecided (fewer than three seeds in common)"
    if not fair:
        return "undecided (learning rates not searched alike, or at the edge of the search)"
    if not learned:
        return "undecided (training left the second below the untrained model)"
    if found.high < 0:
        return "not reproduced"
    if found.low > (0 if strict else -MARGIN):
        return "reproduced"
    return "undecided"


def is_fair(first: Entry, second: Entry) -> bool:
    """Whether both searched their learning rate with the same budget, and no winner was at the edge of the search.

    The budget is also how many seeds searched: all for themselves, or one for all, the same on both sides.

    Returns:
        Whether a comparison of the two is fair.
    """
    one, two = ({name: entry.settings.get(name) for name in BUDGET} for entry in (first, second))
    if one != two or one["learning_rate"] != "auto" or not all(map(_is_interior, (*first.folders, *second.folders))):
        return False
    ours, theirs = _searchers(first), _searchers(second)
    return all(ours[seed] == theirs[seed] for seed in {*ours} & {*theirs})


def _searchers(entry: Entry) -> dict[int, int]:
    """Return, by seed, the seed whose search gave the learning rate."""
    found = _by_seed(entry).items()
    return {seed: read_results(folder).training.get("learning_rate_of_seed", seed) for seed, folder in found}


def _is_interior(folder: str) -> bool:
    return bool(read_results(folder).training.get("learning_rate_is_interior"))


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


def _by_seed(entry: Entry) -> dict[int, str]:
    return dict(zip(entry.seeds, entry.folders, strict=True))
