"""What a site table is: every training run of a sweep over the sites of a model, as a JSON file.

Anyone can test a score of sites on it without training anything. The file has one record per run; what is derived from
runs (chosen rates, means over seeds) is computed here and stands nowhere in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerscope.analysis.shown import Shown
from steerscope.errors import InputError
from steerscope.experiments.site_tables.table_parts import (
    TableCost,
    TableData,
    TableRanking,
    TableSchedule,
    TrainedEdit,
)
from steerscope.finite import finite_or_none, or_infinite
from steerscope.model_identity import ModelIdentity
from steerscope.records import Record
from steerscope.sites import Site, parse_site

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SiteRun:
    """One training run of one edit at one site.

    Attributes:
        site: The hook point, ``12.resid_post``; several joined by ``+`` are one edit at each of them.
        learning_rate: Its peak.
        seed: Of training examples, order and start; runs of one seed saw the same batches.
        steps: Optimizer steps.
        selection_loss: Negative log-likelihood of the completion on selection examples, nats, mean; None where the run
            diverged.
        selection_accuracy: Share of selection examples answered right.
        loss: The same on test examples; None too where the run was not tested, because another rate was chosen.
        accuracy: The same on test examples; None where not tested.
        train_losses: Loss of every step, on examples the run has not seen before where the task has enough of them,
            before it learns from them; shorter where the run stopped being finite.
        seconds: Its share of its pack's training time, on the machine that ran it.
        diverged: Whether its losses ended far above where they began, or stopped being numbers.
    """

    site: str
    learning_rate: float
    seed: int
    steps: int
    selection_loss: float | None
    selection_accuracy: float
    loss: float | None
    accuracy: float | None
    train_losses: tuple[float, ...]
    seconds: float
    diverged: bool = False


@dataclass(frozen=True)
class Base:
    """What the model does without any edit, on the test examples.

    Attributes:
        loss: Negative log-likelihood of the completion, nats, mean.
        accuracy: Share answered right.
        majority: What always giving one answer, the best in hindsight, is right for.
        recalibrated_loss: The loss with the best temperature and output bias (one number per answer token), fitted on
            as many training examples as a run sees. An edit that reaches no less has learned how often which answer is
            right, and nothing about the question.
        recalibrated_accuracy: The accuracy with them.
        temperature: The fitted temperature.
    """

    loss: float
    accuracy: float
    majority: float
    recalibrated_loss: float
    recalibrated_accuracy: float
    temperature: float


@dataclass(frozen=True)
class SiteOutcome:
    """What training at one site came to, at the learning rate chosen for it.

    Attributes:
        site: The hook point.
        learning_rate: The chosen one: the lowest selection loss with the first seed.
        tuned: Whether its rate was searched at this very site; else it is that of the nearest searched layer of its
            kind.
        interior: Whether both neighbours on the grid of rates were tried here and are worse.
        losses: Test loss per seed, nats; infinite where the run diverged.
        accuracies: Test accuracy per seed.
        selection_losses: Loss on selection examples per seed, nats: what a site may be chosen by.
        seeds: The seeds.
    """

    site: Site
    learning_rate: float
    tuned: bool
    interior: bool
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    selection_losses: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean test loss over seeds, nats."""
        return float(np.mean(self.losses))

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over seeds."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True, repr=False)
class SiteTable(Record, Shown, what="site table", sign="runs"):
    """Trained outcomes over the sites of one model on one task.

    Attributes:
        model: Which model, with its hash.
        task: Its name, or that of a user's file.
        edit: The trained edit: ``family``, ``rank``, ``bias``, ``scale``, ...
        schedule: ``steps``, ``batch_size``, ``warmup``, ``clip``.
        dtype: Data type of the frozen model.
        data: Hashes of the parts, and how many examples each has.
        base: The model without edits.
        runs: Every run, at the chosen rates and at others, of ``schedule.steps`` steps or twice as many.
        versions: Package versions.
        command: What makes the file again.
        scores: Scores of sites by name, then by site, of a ranking made with the same task; higher is better.
        ranking: How that ranking was made: prompts, seconds, output directions.
        cost: Of all runs together: ``runs``, ``seconds`` of training, and floating-point ``operations`` in it.
        note: What a reader has to know, such as what stopped the sweep.
    """

    model: ModelIdentity
    task: str
    edit: TrainedEdit
    schedule: TableSchedule
    dtype: str
    data: TableData
    base: Base
    runs: tuple[SiteRun, ...]
    versions: dict[str, str]
    command: str = ""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    ranking: TableRanking = field(default_factory=TableRanking)
    cost: TableCost = field(default_factory=TableCost)
    note: str = ""
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def _of(cls, data: Any, where: str) -> SiteTable:
        table = super()._of(data, where)
        for run in table.runs:
            for name in run.site.split("+"):
                parse_site(name)
        return table

    def headline(self) -> str:
        """Return how many sites were trained and which came out best, in one sentence."""
        found = self.outcomes()
        best = min(found, key=lambda one: one.loss)
        return (
            f"{self.name}: {len(found)} sites, up to {len(self.seeds)} {'seed' if len(self.seeds) == 1 else 'seeds'}, "
            f"{self.steps} steps of {self.schedule.batch_size}; best trained: {best.site}, loss {best.loss:.3f}, "
            f"accuracy {100 * best.accuracy:.1f}%."
        )

    def paragraphs(self) -> list[str]:
        """Return the headline, what the model does untrained, and the sites, best first."""
        base = self.base
        before = (
            f"Without an edit: loss {base.loss:.3f}, accuracy {100 * base.accuracy:.1f}%; with the best temperature "
            f"and output bias {base.recalibrated_loss:.3f}, {100 * base.recalibrated_accuracy:.1f}%; always one answer "
            f"{100 * base.majority:.1f}%."
        )
        lines = [f"{'site':<16} {'loss':>7} {'accuracy':>9} {'rate':>9} {'seeds':>5}"]
        for one in sorted(self.outcomes(), key=lambda one: one.loss):
            lines.append(
                f"{one.site!s:<16} {one.loss:>7.3f} {100 * one.accuracy:>8.1f}% {one.learning_rate:>9.3g} "
                f"{len(one.losses):>5}"
            )
        return [self.headline(), before, "\n".join(lines)]

    def records(self) -> list[dict[str, Any]]:
        """Return one row per trained site, lowest first: its outcome, and ``scores.NAME`` for every score."""
        return [
            {
                "site": str(one.site),
                "loss": finite_or_none(one.loss),
                "accuracy": one.accuracy,
                "learning_rate": one.learning_rate,
                "tuned": one.tuned,
                "interior": one.interior,
                "num_seeds": len(one.seeds),
                **{f"scores.{name}": own.get(str(one.site)) for name, own in self.scores.items()},
            }
            for one in self.outcomes()
        ]

    @property
    def name(self) -> str:
        """Model and task."""
        return f"{self.model.name} on {self.task}"

    @property
    def num_test(self) -> int:
        """Test examples."""
        return self.data.num_test

    @property
    def steps(self) -> int:
        """Optimizer steps of the runs that the outcomes are about."""
        return self.schedule.steps

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""
        return self.model.layers

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with which some run was tested, the first one chose the rates."""
        return tuple(sorted({run.seed for run in self.runs if run.steps == self.steps and run.accuracy is not None}))

    def outcomes(self, min_seeds: int = 1) -> tuple[SiteOutcome, ...]:
        """Return what training at each site came to, lowest sites first.

        Args:
            min_seeds: Sites that were tested with fewer seeds are left out.

        Raises:
            InputError: There is none.
        """
        found = [self._outcome(site) for site in self._sites(self.steps)]
        kept = [one for one in found if one is not None and len(one.losses) >= min_seeds]
        if not kept:
            raise InputError(
                f"the table of {self.name} has no site that was tested with {min_seeds} or more seeds. Let the sweep "
                "go on."
            )
        return tuple(sorted(kept, key=lambda one: (one.site.layer, one.site.kind.order)))

    def longer(self) -> dict[str, float]:
        """Return the test loss of runs of twice as many steps by site, mean over seeds; empty without any."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            if run.steps == 2 * self.steps and run.accuracy is not None:
                found.setdefault(run.site, []).append(or_infinite(run.loss))
        return {site: float(np.mean(losses)) for site, losses in found.items()}

    def trajectories(self, seed: int) -> dict[str, NDArray[np.float64]]:
        """Return the losses of all steps by site, of one seed at the chosen rates; infinite after a stop."""
        found = {}
        chosen = {str(one.site): one.learning_rate for one in self.outcomes()}
        for run in self.runs:
            if run.seed == seed and run.steps == self.steps and run.learning_rate == chosen.get(run.site):
                losses = np.full(self.steps, np.inf)
                losses[: len(run.train_losses)] = run.train_losses
                found[run.site] = losses
        return found

    def _sites(self, steps: int) -> list[str]:
        return list(dict.fromkeys(run.site for run in self.runs if run.steps == steps and "+" not in run.site))

    def _outcome(self, site: str) -> SiteOutcome | None:
        runs = [run for run in self.runs if run.site == site and run.steps == self.steps]
        tested = sorted((run for run in runs if run.accuracy is not None), key=lambda run: run.seed)
        if not tested:
            return None
        rate = tested[0].learning_rate
        first = {run.learning_rate: run.selection_loss for run in runs if run.seed == tested[0].seed}
        return SiteOutcome(
            site=parse_site(site),
            learning_rate=rate,
            tuned=len(first) > 1,
            interior=min(first) < rate < max(first),
            losses=tuple(or_infinite(run.loss) for run in tested),
            accuracies=tuple(float(run.accuracy or 0.0) for run in tested),
            selection_losses=tuple(or_infinite(run.selection_loss) for run in tested),
            seeds=tuple(run.seed for run in tested),
        )
