"""Whether trainings had come to an end: the training loss of the last tenth of steps against the tenth before.

The learning rate falls to zero at the end of a run, so that a flat end says less than a longer run does: where the same
configuration was also trained for more steps, the accuracies of both stand side by side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student

from steerscope.experiments.comparison.groups import Entry
from steerscope.experiments.runs.folder import read_results
from studies.claims.groups import Group
from studies.claims.rule import Difference, difference
from studies.claims.sections import trained_words

# A loss still falls if its last tenth of steps brought more than this part of the whole way.
FLAT = 0.05
FALLING = "still falling"
# What differs between a run and one for longer of the same configuration.
_LENGTH = ("steps", "lr_steps")


@dataclass(frozen=True)
class End:
    """How the training loss of a configuration ended, means over seeds in nats.

    Attributes:
        first: Of the first tenth of steps.
        before: Of the last tenth but one.
        last: Of the last tenth.
        half: Half the 95% interval over seeds of ``before - last``; infinite for one seed.
    """

    first: float
    before: float
    last: float
    half: float

    @property
    def share(self) -> float:
        """What the last tenth brought, as a part of the whole way down; NaN where the loss did not fall."""
        way = self.first - self.last
        return (self.before - self.last) / way if way > 0 else math.nan

    @property
    def word(self) -> str:
        """``flat``, ``still falling``, or ``not told`` where seeds differ too much to say."""
        way, fall = FLAT * (self.first - self.last), self.before - self.last
        if way <= 0:
            return "did not fall"
        if fall - self.half > way:
            return FALLING
        return "flat" if fall + self.half < way else "not told"


def end_of(entry: Entry) -> End | None:
    """Return how a configuration's training ended, or ``None`` where losses were not kept or are too few."""
    found = []
    for folder in entry.folders:
        losses = [float(loss) for _, loss in read_results(folder).training.get("losses", [])]
        tenth = len(losses) // 10
        if not tenth:
            return None
        found.append((fmean(losses[:tenth]), fmean(losses[-2 * tenth : -tenth]), fmean(losses[-tenth:])))
    falls = [before - last for _, before, last in found]
    count = len(falls)
    half = float(student.ppf(0.975, count - 1)) * stdev(falls) / math.sqrt(count) if count > 1 else math.inf
    first, before, last = (fmean(one[i] for one in found) for i in range(3))
    return End(first, before, last, half)


@dataclass(frozen=True)
class Longer:
    """One configuration, trained for two numbers of steps.

    Attributes:
        words: The configuration.
        steps: The two numbers, ascending.
        accuracies: Of each, over its seeds.
        gain: The longer minus the shorter over seeds in common; ``None`` without any.
    """

    words: str
    steps: tuple[int, int]
    accuracies: tuple[float, float]
    gain: Difference | None


def longer_runs(group: Group, others: Sequence[Group]) -> list[Longer]:
    """Return the configurations of a group that others trained for more steps."""
    found = []
    for entry in group.trained:
        for other in (one for group_ in others for one in group_.trained):
            if _but_for_length(entry) == _but_for_length(other) and _steps(entry) < _steps(other):
                accuracies = (entry.accuracy, other.accuracy)
                steps = (_steps(entry), _steps(other))
                found.append(Longer(trained_words(entry), steps, accuracies, difference(other, entry)))
    return found


def _steps(entry: Entry) -> int:
    return int(entry.settings.get("steps", 0))


def _but_for_length(entry: Entry) -> str:
    settings = {name: value for name, value in entry.settings.items() if name not in _LENGTH}
    return json.dumps([entry.method, entry.sites, entry.rank, settings], sort_keys=True)
