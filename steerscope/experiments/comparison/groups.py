"""Group finished runs by configuration and refuse to compare what was not asked the same questions.

Seeds of one configuration answer the same test questions, so their answers are not independent trials: pooling them
into one Wilson interval would make it too narrow. A group therefore reports two uncertainties: Wilson's 95%
interval of the mean accuracy at the number of test questions (which questions were drawn), and the standard deviation
of accuracies over seeds (which seed).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from steerscope.analysis.provenance import knows_data, model_key
from steerscope.analysis.shown import Shown
from steerscope.errors import InputError
from steerscope.experiments.runs.accuracy import wilson_interval
from steerscope.experiments.runs.folder import RESULTS, read_results
from steerscope.experiments.runs.records import RunResults
from steerscope.experiments.training.methods import METHODS
from steerscope.records import Record

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One configuration with all its seeds.

    Attributes:
        method: As the runs name it.
        sites: Names of the edited sites.
        rank: Rank, or ``None``.
        model: Name of the model.
        parameters: Numbers that are trained.
        seeds: Training seeds, ascending.
        accuracies: Test accuracy per seed.
        accuracy: Their mean.
        low: Lower end of Wilson's 95% interval of that mean at ``n`` questions, seeds not pooled.
        high: Upper end.
        spread: Standard deviation of accuracies over seeds, or ``None`` for one.
        loss: Mean loss, or ``None`` where a seed has none.
        tokens_per_second: Mean, or ``None``.
        peak_memory: Largest, in bytes, or ``None``.
        seconds: Mean wall time of a run.
        folders: Where the runs are.
        settings: What else decided the outcome, the same for all seeds.
        data: What training data in words, where the entries of a comparison differ in it.
    """

    method: str
    sites: tuple[str, ...]
    rank: int | None
    model: str
    parameters: int
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    accuracy: float
    low: float
    high: float
    spread: float | None
    loss: float | None
    tokens_per_second: float | None
    peak_memory: int | None
    seconds: float
    folders: tuple[str, ...]
    settings: dict[str, Any]
    data: str = ""

    @property
    def site_words(self) -> str:
        """The sites in a few words: ``resid_post x30`` for one kind in thirty layers."""
        kinds = sorted({site.split(".")[1] for site in self.sites if site.count(".") == 1})
        if len(self.sites) > 2 and len(kinds) == 1 and all(site.count(".") == 1 for site in self.sites):
            return f"{kinds[0]} x{len(self.sites)}"
        shown = ", ".join(self.sites[:3])
        return f"{shown} and {len(self.sites) - 3} more" if len(self.sites) > 3 else shown or "-"

    @property
    def setting_words(self) -> tuple[str, ...]:
        """What else tells configurations of one method apart, a few words each; empty for a method as it is."""
        told = self.settings
        found = []
        if told.get("positions", "all") != "all":
            found.append(f"on {told['positions']}")
        if told.get("start") == "published":
            found.append("published start")
        if told.get("bias") is False:
            found.append("without bias")
        if told.get("scale") == "rms":
            found.append("scaled")
        if "constraint" in told:
            found.append(f"constraint {told['constraint']}")
        if self.data:
            found.append(self.data)
        return tuple(found)


@dataclass(frozen=True, repr=False)
class Comparison(Record, Shown, what="comparison", sign="entries", report="comparison"):
    """Runs on one test set, best first.

    Attributes:
        task: Name of the task.
        test_set: Hash of its questions.
        n: How many.
        majority: What the most frequent answer alone reaches on them.
        entries: One per configuration, highest mean accuracy first.
        schema_version: Version of this format.
    """

    task: str
    test_set: str
    n: int
    majority: float
    entries: tuple[Entry, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def data_note(self) -> str:
        """A sentence where runs do not say on which data they were trained, or nothing."""
        unknown = any(one.parameters and not knows_data(one.settings) for one in self.entries)
        return "Runs of earlier versions do not say on which data they were trained." if unknown else ""

    def headline(self) -> str:
        """Return the best configuration, in one sentence."""
        best = self.entries[0]
        return (
            f"{self.task}, {self.n:,} test questions: {len(self.entries)} configurations, best {best.method} "
            f"{best.accuracy:.1%} [{best.low:.1%}, {best.high:.1%}] (majority {self.majority:.1%})."
        )

    def records(self) -> list[dict[str, Any]]:
        """Return one row per configuration, best first: an :class:`Entry`'s fields, its settings aside."""
        return [
            {"task": self.task, "n": self.n, "majority": self.majority}
            | {name: value for name, value in asdict(entry).items() if name != "settings"}
            for entry in self.entries
        ]


def run_folders(folders: Sequence[str | Path]) -> list[Path]:
    """Return the run folders among and directly below the folders given, each once.

    Raises:
        InputError: A folder is missing, or neither it nor one directly below holds results.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        place = Path(folder)
        if not place.is_dir():
            raise InputError(
                f"there is no folder {str(folder)!r}. Give folders that steerscope train or evaluate wrote."
            )
        # A symbolic link and its target are one run.
        runs = [place] if (place / RESULTS).exists() else sorted(p.parent for p in place.glob(f"*/{RESULTS}"))
        if not runs:
            raise InputError(
                f"{str(folder)!r} holds no finished run: neither it nor a folder in it has {RESULTS}. Give folders "
                "that steerscope train or evaluate --out wrote; a run that was cut off has none."
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _require_method(run: RunResults, place: Path) -> None:
    """Refuse results with sites of a method that edits none.

    Raises:
        InputError: They contradict each other.
    """
    method = METHODS.get(run.method)
    if method is not None and run.sites and not method.edits:
        raise InputError(
            f"{str(place)!r} contradicts itself: method {run.method!r} edits no site, and the run has sites "
            f"{list(run.sites)[:3]}. Was it changed by hand? Run again."
        )


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read finished runs and group them.

    Args:
        folders: Run folders, or folders of run folders.

    Returns:
        One entry per configuration, with mean and interval over its seeds.

    Raises:
        InputError: No runs, results that are missing or malformed, runs of different tasks or test questions, or a
            seed that occurs twice in one configuration.
    """
    if not folders:
        raise InputError("got no folders to compare; give at least one run folder.")
    places = run_folders(folders)
    runs = [read_results(place) for place in places]
    for place, run in zip(places, runs, strict=True):
        _require_method(run, place)
    first = runs[0]
    for place, run in zip(places, runs, strict=True):
        for what in ("task", "test_set", "n"):
            if getattr(run, what) != getattr(first, what):
                raise InputError(
                    f"runs answered different questions: {what} is {getattr(first, what)!r} in {str(places[0])!r} and "
                    f"{getattr(run, what)!r} in {str(place)!r}. Compare runs of one task on one test set (the same "
                    "number of examples and data)."
                )
        tests = [one.settings["data"].get("test") for one in (first, run) if knows_data(one.settings)]
        if len(set(tests)) > 1:
            raise InputError(
                f"runs answered different questions: the test data of {str(places[0])!r} and {str(place)!r} differ in "
                "their choices or completions. Compare runs of one task on one test set."
            )
    groups: dict[str, list[tuple[Path, RunResults]]] = {}
    for place, run in zip(places, runs, strict=True):
        groups.setdefault(_configuration(run), []).append((place, run))
    entries = _told_apart([_entry(sorted(members, key=lambda pair: pair[1].seed)) for members in groups.values()])
    return Comparison(
        task=first.task,
        test_set=first.test_set,
        n=first.n,
        majority=first.majority,
        entries=tuple(sorted(entries, key=lambda e: (-e.accuracy, e.parameters, e.method, e.sites))),
    )


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """Say of every entry that was trained on which data, where they are not all of the same.

    Returns:
        The entries, with ``data`` filled in where it is needed.
    """
    found = [one.settings["data"].get("train") if knows_data(one.settings) else "" for one in entries]
    trained = [hash_ if one.parameters else None for one, hash_ in zip(entries, found, strict=True)]
    if len({hash_ for hash_ in trained if hash_ is not None}) < 2:
        return entries
    words = {hash_: f"data {hash_[:8]}" if hash_ else "unknown data" for hash_ in trained if hash_ is not None}
    return [replace(one, data="" if h is None else words[h]) for one, h in zip(entries, trained, strict=True)]


def _configuration(run: RunResults) -> str:
    """Return what runs of one configuration share: everything but the seed."""
    key = (run.method, run.sites, run.rank, model_key(run.model), run.trainable_parameters, run.settings)
    return json.dumps(key, sort_keys=True, allow_nan=False)


def _entry(members: list[tuple[Path, RunResults]]) -> Entry:
    runs = [run for _, run in members]
    seeds = [run.seed for run in runs]
    for (place, one), (other, two) in pairwise(members):
        if one.seed == two.seed:
            raise InputError(
                f"{str(place)!r} and {str(other)!r} are the same configuration with the same seed {one.seed}; counted "
                "twice it would look more certain than it is. Name one of them."
            )
    run, accuracies = runs[0], [one.test_accuracy for one in runs]
    mean = fmean(accuracies)
    low, high = wilson_interval(min(mean, 1.0), run.n)
    memory = [one.peak_memory for one in runs if one.peak_memory is not None]
    return Entry(
        method=run.method,
        sites=run.sites,
        rank=run.rank,
        model=run.model.name,
        parameters=run.trainable_parameters,
        seeds=tuple(seeds),
        accuracies=tuple(accuracies),
        accuracy=mean,
        low=low,
        high=high,
        spread=stdev(accuracies) if len(accuracies) > 1 else None,
        loss=_mean([one.loss for one in runs]),
        tokens_per_second=_mean([one.tokens_per_second for one in runs]),
        peak_memory=max(memory) if memory else None,
        seconds=fmean(one.seconds for one in runs),
        folders=tuple(str(place) for place, _ in members),
        settings=dict(run.settings),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if len(known) == len(values) else None
