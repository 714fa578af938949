"""Runs that can be compared: of one task, model, test set and training, with the model as it is beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerscope.analysis.provenance import RECIPE, model_key
from steerscope.experiments.comparison.groups import Comparison, Entry, compare, run_folders
from steerscope.experiments.runs.folder import read_json, read_results
from studies.claims.recalibrated import RECALIBRATED
from studies.claims.sections import SHARED

# Models below are made for tests of methods, not to say something of language models.
SMALLEST = 100_000_000


@dataclass(frozen=True)
class Group:
    """Configurations of one task, model, test set and training.

    Attributes:
        runs: The configurations that were trained so, and those that were not trained, best first.
        untrained: The model as it is, or ``None``.
        recalibrated: What it reaches recalibrated; ``None`` where that is not measured or there is none.
        needs_recalibrated: Whether it is not measured.
        parameters: Of the model.
        recipe: Of the prompts.
    """

    runs: Comparison
    untrained: Entry | None
    recalibrated: float | None
    needs_recalibrated: bool
    parameters: int
    recipe: int

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All configurations, best first."""
        return self.runs.entries

    @property
    def trained(self) -> tuple[Entry, ...]:
        """Those that train something, best first."""
        return tuple(entry for entry in self.entries if entry.parameters)

    @property
    def is_tiny(self) -> bool:
        """Whether the model is a tiny one."""
        return self.parameters < SMALLEST

    @property
    def is_earlier(self) -> bool:
        """Whether prompts were other ones than today's."""
        return self.recipe != RECIPE

    @property
    def title(self) -> str:
        """Task, model, questions and training in a few words."""
        models = " + ".join(dict.fromkeys(Path(entry.model).name for entry in self.entries))
        told = self.trained[0].settings if self.trained else {}
        length = f", {told['steps']} steps of {told['batch_size']}" if {"steps", "batch_size"} <= told.keys() else ""
        return f"{self.runs.task}, {models}{length}, {self.runs.n:,} test questions"


def studies(folders: Sequence[str | Path]) -> list[Comparison]:
    """Return the runs grouped by task, model and test questions, most runs first.

    Raises:
        InputError: A folder is missing or holds no run, or a run is damaged.
    """
    groups: dict[tuple[Any, ...], list[Path]] = {}
    for place in run_folders(folders) if folders else []:
        run = read_results(place)
        groups.setdefault((run.task, model_key(run.model), run.test_set, run.n), []).append(place)
    return [compare(places) for _, places in sorted(groups.items(), key=lambda one: (-len(one[1]), str(one[0])))]


def groups_of(one: Comparison) -> list[Group]:
    """Return the groups of a comparison, one for each way of training, most configurations first.

    Raises:
        InputError: A measurement beside a run is damaged.
    """
    by_training: dict[str, list[Entry]] = {}
    for entry in one.entries:
        if entry.parameters:
            told = [entry.settings.get(name) for name in SHARED] + [entry.settings.get("recipe", 1)]
            by_training.setdefault(json.dumps(told, sort_keys=True), []).append(entry)
    bare = [entry for entry in one.entries if not entry.parameters]
    return [
        _group(one, [entry for entry in one.entries if entry in chosen or entry in bare])
        for chosen in sorted(by_training.values(), key=len, reverse=True) or [[]]
    ]


def _group(one: Comparison, entries: Sequence[Entry]) -> Group:
    untrained = next((entry for entry in entries if entry.method == "none"), None)
    folder = Path(untrained.folders[0]) / RECALIBRATED if untrained else None
    measured = read_json(folder, "a measurement") if folder and folder.exists() else None
    run = read_results(entries[0].folders[0])
    trained = [entry for entry in entries if entry.parameters]
    return Group(
        replace(one, entries=tuple(entries)),
        untrained,
        measured["accuracy"] if measured else None,
        measured is None,
        run.model.n_params,
        int((trained or entries)[0].settings.get("recipe", 1)),
    )
