"""What a validation is: a frozen result that saves as JSON and loads again."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerscope.analysis.shown import Shown
from steerscope.errors import InputError
from steerscope.files import parse_json, read_text
from steerscope.finite import require_finite_record
from steerscope.folders import write_result

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TrainedSite:
    """One site, or one method of reference, with what the ranking said and what training gave.

    ``losses`` and ``accuracies`` are on test examples, one per seed; a loss is ``None`` where the run diverged.
    ``scores`` is empty for a method of reference.
    """

    method: str
    learning_rate: float
    interior: bool
    tried: dict[str, float | None]
    losses: tuple[float | None, ...]
    accuracies: tuple[float, ...]
    seconds: float
    n_params: int
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float:
        """Mean test loss over seeds; infinite where a run diverged."""
        return float(np.mean([math.inf if v is None else v for v in self.losses]))

    @property
    def mean_accuracy(self) -> float:
        """Mean test accuracy over seeds."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True, repr=False)
class Validation(Shown, report="validation"):
    """Everything ``steerscope validate`` found.

    Attributes:
        model: As in a ranking.
        task: Name of the task or file.
        options: What was asked for.
        versions: Package versions.
        before: ``loss``, ``accuracy`` of the untrained model on the test examples, ``majority`` rate, ``n_test``.
        score: Name of the ranking's default score.
        sites: The sites trained at, lowest first.
        references: Full fine-tuning, LoRA, the greedy set.
        agreements: Per score and baseline, how well it predicted (:class:`Agreement` as a dictionary).
        baselines: Names of the plain baselines among them.
        ceiling: Agreement of the training with itself (:class:`Ceiling` as a dictionary, NaN as ``None``).
        cost: ``ranking`` and ``training`` in seconds, and ``sweep``: training at every layer and kind with the
            learning-rate search, one seed, scaled from the runs made; ``ratio`` of ranking to sweep.
        command: What the user typed, where known.
        data: Hashes of the examples it was made from: ``ranking``, ``train`` (of the first seed), ``selection``,
            ``test``; empty for those of earlier versions.
    """

    model: dict[str, Any]
    task: str
    options: dict[str, Any]
    versions: dict[str, str]
    before: dict[str, float]
    score: str
    sites: tuple[TrainedSite, ...]
    references: tuple[TrainedSite, ...]
    agreements: dict[str, dict[str, Any]]
    baselines: tuple[str, ...]
    ceiling: dict[str, Any]
    cost: dict[str, float]
    command: str = ""
    data: dict[str, str] = field(default_factory=dict)
    schema_version: int = field(default=SCHEMA_VERSION)

    def __post_init__(self) -> None:
        """Refuse numbers that are NaN or infinite: the loss of a training that diverged is ``None``.

        Raises:
            InputError: There is one.
        """
        require_finite_record("the validation", self, "Validate again; where a value is not known, it is None.")

    @property
    def study(self) -> str:
        """Model and task, the name under which constants of a study are kept."""
        return f"{self.model['name']} on {self.task}"

    def losses(self) -> NDArray[np.float64]:
        """Return test losses, ``site seed``, infinite where a run diverged."""
        return np.array([[math.inf if v is None else v for v in site.losses] for site in self.sites])

    def headline(self) -> str:
        """Return how well the score foresaw the trained losses, in one sentence."""
        found = self.agreements.get(self.score)
        said = "not compared yet" if found is None else f"Spearman {found['spearman']:.2f} with minus the trained loss"
        return f"{self.study}: {self.score} at {len(self.sites)} trained sites, {said}."

    def to_json(self) -> str:
        """Return the validation as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write ``validation.json``; an earlier file is replaced only when the new one is whole.

        Raises:
            InputError: Something else is there, or it cannot be written.
        """
        write_result(path, self.to_json(), "agreements")

    @classmethod
    def load(cls, path: str | Path) -> Validation:
        """Read a validation that :meth:`save` wrote.

        Raises:
            InputError: No such file, not JSON, or another schema version.
        """
        text = read_text(Path(path), "the validation")
        try:
            data = parse_json(text)
        except ValueError as error:
            raise InputError(f"{path} is no validation: invalid JSON ({error}).") from error
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
            raise InputError(
                f"{path} has schema_version {found!r}, this steerscope reads {SCHEMA_VERSION}. Validate again, or "
                "use the version that wrote it."
            )
        parts = {name: tuple(_site(one) for one in data[name]) for name in ("sites", "references")}
        return cls(**{**data, **parts, "baselines": tuple(data["baselines"])})


def _site(data: dict[str, Any]) -> TrainedSite:
    lists = {name: tuple(data[name]) for name in ("losses", "accuracies")}
    return TrainedSite(**{**data, **lists})
