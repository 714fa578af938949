"""What a validation is: a frozen result that saves as JSON and loads again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerscope.analysis.result_parts import Evidence, ReferenceLoss, TrainedPoint
from steerscope.analysis.shown import Shown
from steerscope.experiments.agreement.agreements import Agreement
from steerscope.experiments.agreement.attainable import Attainable
from steerscope.finite import finite_or_none, or_infinite, require_finite_record
from steerscope.model_identity import ModelIdentity
from steerscope.records import Count, Record

SCHEMA_VERSION = 2


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
        return float(np.mean(list(map(or_infinite, self.losses))))

    @property
    def mean_accuracy(self) -> float:
        """Mean test accuracy over seeds."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class ValidationSettings:
    """What a validation was asked for: the fields of :class:`~.options.ValidateOptions` that decide it.

    Attributes:
        sites: How many sites were asked for, or their names.
        seeds: Training seeds.
        rank: Rank of the linear edits, and of LoRA.
        steps: Optimizer steps of every run.
        batch_size: Examples per step.
        num_ranking: Prompts that the ranking was asked to be made from.
        num_selection: Held-out prompts that chose learning rates, at most.
        num_test: Test prompts, at most.
        references: Whether full fine-tuning, LoRA and the greedy set were trained as well.
        seed: Of the ranking, of the bootstrap and of the first training run.
    """

    sites: int | tuple[str, ...]
    seeds: int
    rank: int
    steps: int
    batch_size: int
    num_ranking: int
    num_selection: int
    num_test: int
    references: bool
    seed: int


@dataclass(frozen=True)
class Untrained:
    """The model as it is, on the test examples.

    Attributes:
        loss: Negative log-likelihood of the completion, nats, mean.
        accuracy: Share answered right.
        majority: What always giving the most frequent answer is right for.
        n_test: Test examples.
    """

    loss: float
    accuracy: float
    majority: float
    n_test: Count


@dataclass(frozen=True)
class ValidationCost:
    """What the ranking costs beside the trainings that it stands for.

    Attributes:
        ranking: Seconds of the ranking.
        training: Seconds of the runs made.
        sweep: Seconds of training at every layer and kind with the learning-rate search, one seed, scaled from them.
        ratio: ``ranking`` as a part of ``sweep``.
    """

    ranking: float
    training: float
    sweep: float
    ratio: float


@dataclass(frozen=True, repr=False)
class Validation(Record, Shown, what="validation", sign="agreements", report="validation"):
    """Everything ``steerscope validate`` found.

    Attributes:
        model: Which model.
        task: Name of the task or file.
        options: What was asked for.
        versions: Package versions.
        before: The untrained model on the test examples: ``loss``, ``accuracy``, ``majority``, ``n_test``.
        score: Name of the ranking's default score.
        sites: The sites trained at, lowest first.
        references: Full fine-tuning, LoRA, the greedy set.
        agreements: Per score and baseline, how well it predicted; empty before the comparison.
        baselines: Names of the plain baselines among them.
        attainable: What correlation training noise leaves attainable; None before the comparison.
        cost: Seconds of ``ranking``, ``training`` and of a whole ``sweep``, and the first's ``ratio`` to the last.
        command: What the user typed, where known.
        data: Hashes of the examples it was made from: ``ranking``, ``train`` (of the first seed), ``selection``,
            ``test``; empty for those of earlier versions.
    """

    model: ModelIdentity
    task: str
    options: ValidationSettings
    versions: dict[str, str]
    before: Untrained
    score: str
    sites: tuple[TrainedSite, ...]
    references: tuple[TrainedSite, ...]
    agreements: dict[str, Agreement]
    baselines: tuple[str, ...]
    attainable: Attainable | None
    cost: ValidationCost
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
        return f"{self.model.name} on {self.task}"

    def losses(self) -> NDArray[np.float64]:
        """Return test losses, ``site seed``, infinite where a run diverged."""
        return np.array([list(map(or_infinite, site.losses)) for site in self.sites])

    @property
    def limit(self) -> float | None:
        """The attainable correlation, where it is known: it takes two seeds."""
        return None if self.attainable is None else self.attainable.spearman

    def headline(self) -> str:
        """Return how well the score foresaw the trained losses, in one sentence."""
        found = self.agreements.get(self.score)
        said = "not compared yet" if found is None else f"Spearman {found.spearman:.2f} with minus the trained loss"
        return f"{self.study}: {self.score} at {len(self.sites)} trained sites, {said}."

    def evidence(self) -> Evidence:
        """Return what a validated ranking says of its score: a summary, numbers, and the points of the figure."""
        found = self.agreements[self.score]
        limit = self.limit
        against = f", of {limit:.2f} that is attainable with this training noise" if limit is not None else ""
        seeds = self.options.seeds
        summary = (
            f"Validated by training at {len(self.sites)} sites of this model on {self.task} ({seeds} "
            f"{'seed' if seeds == 1 else 'seeds'}, {self.options.steps} steps): Spearman correlation of the score "
            f"with trained held-out loss {found.spearman:.2f} ({found.low:.2f} to {found.high:.2f}), given "
            f"depth {found.partial:.2f}{against}."
        )
        points = tuple(
            TrainedPoint(
                site=site.method,
                score=site.scores[self.score],
                loss=finite_or_none(site.mean_loss),
                low=min((v for v in site.losses if v is not None), default=None),
                high=max((v for v in site.losses if v is not None), default=None),
            )
            for site in self.sites
        )
        lines = [ReferenceLoss(one.method, one.mean_loss) for one in self.references if math.isfinite(one.mean_loss)]
        agreements = (one.as_dict() | {"is_baseline": name in self.baselines} for name, one in self.agreements.items())
        return Evidence(
            summary=summary,
            task=self.task,
            score=self.score,
            n_sites=len(self.sites),
            n_seeds=seeds,
            spearman=found.spearman,
            low=found.low,
            high=found.high,
            partial=found.partial,
            attainable=limit,
            agreements=tuple(sorted(agreements, key=lambda one: -one["spearman"])),
            points=points,
            references=(*lines, ReferenceLoss("no training", self.before.loss)),
        )

    def records(self) -> list[dict[str, Any]]:
        """Return one row per site trained at, lowest first, then the references: losses, and ``scores.NAME`` for each.

        A mean loss is ``None`` where a run diverged, and so is a reference's score.
        """
        names = sorted({name for site in self.sites for name in site.scores})
        return [
            {
                "site": one.method,
                "is_reference": one in self.references,
                "mean_loss": finite_or_none(one.mean_loss),
                "mean_accuracy": one.mean_accuracy,
                "losses": one.losses,
                "accuracies": one.accuracies,
                "learning_rate": one.learning_rate,
                "interior": one.interior,
                "n_params": one.n_params,
                "seconds": one.seconds,
                **{f"scores.{name}": one.scores.get(name) for name in names},
            }
            for one in (*self.sites, *self.references)
        ]

    @classmethod
    def _of(cls, data: Any, where: str) -> Validation:
        """Return a validation; one of version 1 is compared again, by today's statistics."""
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return super()._of(data, where)
        from steerscope.experiments.validation.validate import compared  # which imports this file

        # Before, what two seeds agreed on was stored as a ceiling, which is not an upper bound.
        anew: dict[str, Any] = {"agreements": {}, "attainable": None, "schema_version": SCHEMA_VERSION}
        return compared(super()._of({name: value for name, value in (data | anew).items() if name != "ceiling"}, where))
