"""Which studies may judge a score: a rule that was fixed before the studies were run.

A score can only be wrong where training had something to learn and learned it in a reproducible order. A study is
admitted if all of these hold; what cannot be computed from what was kept counts as not holding.

1. The best sites gain accuracy over the untrained model, over the recalibrated one (best temperature and output bias),
   and over always giving one answer; and their loss is below that of the recalibrated model. "Gain" means that the 95%
   interval of the difference excludes 0. The best sites are the :data:`BEST` with the lowest loss on selection
   examples, so that test examples choose nothing.
2. Twice as many steps keep the order of sites: Spearman correlation at least :data:`ORDER_KEPT`, on at least
   :data:`LONGER_SITES` sites.
3. At least :data:`INTERIOR` of the learning rates that were searched have a worse neighbour on both sides.
4. The attainable correlation is at least :data:`ATTAINABLE`.

Errors of gains: of an accuracy binomial, for both sides as if they were tested on different examples (they are not, so
the error is rather too large); of a loss from the spread over examples, the same way; between seeds the standard error
of the seeds' means. Student's t with Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steerscope.experiments.agreement.attainable import Attainable
from steerscope.experiments.agreement.layer_bootstrap import Estimate, interval_half

BEST = 3
ORDER_KEPT = 0.8
LONGER_SITES = 10
INTERIOR = 0.9
ATTAINABLE = 0.9


@dataclass(frozen=True)
class Criterion:
    """One condition of the rule.

    Attributes:
        name: A few words.
        value: What is compared; of a gain the lower end of its interval. None where it cannot be computed.
        threshold: What it has to reach; what a gain has to exceed.
        holds: Whether it does.
        sentence: Both in words.
    """

    name: str
    value: float | None
    threshold: float
    holds: bool
    sentence: str


@dataclass(frozen=True)
class Admission:
    """Whether a study may judge scores, and why not."""

    criteria: tuple[Criterion, ...]

    @property
    def holds(self) -> bool:
        """Whether every criterion does."""
        return all(one.holds for one in self.criteria)

    @property
    def sentence(self) -> str:
        """The verdict, with the reason if it is no."""
        if self.holds:
            return "Admitted: all criteria hold."
        return "Not admitted. " + " ".join(one.sentence for one in self.criteria if not one.holds)


@dataclass(frozen=True)
class Study:
    """What the rule looks at.

    Attributes:
        best: The best sites by selection loss.
        accuracies: Test accuracy per seed, mean over the best sites.
        losses: Test loss per seed, mean over the best sites, nats.
        num_test: Test examples.
        base_accuracy: Of the untrained model.
        majority: What always giving one answer is right for.
        recalibrated_accuracy: Of the recalibrated model; None where it was not kept.
        recalibrated_loss: Its loss, nats; None where it was not kept.
        loss_spread: Standard deviation over examples of a trained run's loss, nats; None where it was not kept.
        order_kept: Spearman correlation between the losses of sites and those after twice as many steps; None without
            longer runs.
        num_longer: Sites that it is from.
        num_interior: Searched learning rates with a worse neighbour on both sides.
        num_searched: All that were searched.
        attainable: What correlation training noise leaves attainable.
    """

    best: tuple[str, ...]
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    num_test: int
    base_accuracy: float
    majority: float
    recalibrated_accuracy: float | None
    recalibrated_loss: float | None
    loss_spread: float | None
    order_kept: float | None
    num_longer: int
    num_interior: int
    num_searched: int
    attainable: Attainable


def admission_of(study: Study) -> Admission:
    """Apply the rule."""
    return Admission(
        (
            _accuracy("accuracy over untrained", "the untrained model", study, study.base_accuracy),
            _accuracy("accuracy over one answer", "always giving one answer", study, study.majority),
            _accuracy("accuracy over recalibration", "the recalibrated model", study, study.recalibrated_accuracy),
            _loss(study),
            _order(study),
            _interior(study),
            _attainable(study),
        )
    )


def accuracy_gain(accuracies: tuple[float, ...], before: float, num_test: int) -> Estimate:
    """Return the gain in accuracy over a model's, with its 95% interval.

    Args:
        accuracies: Per seed, at least two.
        before: The other accuracy, on as many examples.
        num_test: Test examples.

    Returns:
        A difference of two shares.
    """
    mean = float(np.mean(accuracies))
    binomial = [(p * (1 - p) / num_test, num_test - 1.0) for p in (mean, before)]
    return _with_seeds(mean - before, binomial, accuracies)


def loss_gain(losses: tuple[float, ...], before: float, spread: float, num_test: int) -> Estimate:
    """Return how far a loss is below another, nats, with its 95% interval.

    Args:
        losses: Per seed, at least two.
        before: The other loss.
        spread: Standard deviation over examples, taken for both.
        num_test: Test examples.

    Returns:
        A difference in nats, positive where the first loss is lower.
    """
    return _with_seeds(before - float(np.mean(losses)), [(2 * spread**2 / num_test, num_test - 1.0)], losses)


def _with_seeds(gain: float, parts: list[tuple[float, float]], values: tuple[float, ...]) -> Estimate:
    num = len(values)
    half = interval_half([*parts, (float(np.var(values, ddof=1)) / num, num - 1.0)])
    return Estimate(gain, gain - half, gain + half)


def _accuracy(name: str, what: str, study: Study, before: float | None) -> Criterion:
    if before is None:
        return _missing(name, 0.0, f"The accuracy of {what} was not kept.")
    if len(study.accuracies) < 2:
        return _missing(name, 0.0, f"One seed says nothing of the error of the gain over {what}.")
    gain = accuracy_gain(study.accuracies, before, study.num_test)
    holds = gain.low > 0
    return Criterion(
        name,
        gain.low,
        0.0,
        holds,
        f"The best sites {'reach' if holds else 'do not surely exceed'} {what}{' and more' if holds else ''}: "
        f"{np.mean(study.accuracies):.1%} against {before:.1%}, a gain of {100 * gain.value:.1f} points "
        f"[{100 * gain.low:.1f}, {100 * gain.high:.1f}].",
    )


def _loss(study: Study) -> Criterion:
    name = "loss beyond recalibration"
    before = study.recalibrated_loss
    if before is None:
        return _missing(name, 0.0, "The loss of the recalibrated model was not kept.")
    mean = float(np.mean(study.losses))
    if not np.isfinite(mean):
        return Criterion(name, None, 0.0, False, "A run at the best sites diverged.")
    if len(study.losses) < 2 or study.loss_spread is None:
        why = "one seed was trained" if len(study.losses) < 2 else "the spread over examples was not kept"
        return _missing(name, 0.0, f"The error of the loss {mean:.3f} against {before:.3f} is not known: {why}.")
    gain = loss_gain(study.losses, before, study.loss_spread, study.num_test)
    holds = gain.low > 0
    return Criterion(
        name,
        gain.low,
        0.0,
        holds,
        f"The best sites' loss {'is' if holds else 'is not surely'} below that of the recalibrated model: {mean:.3f} "
        f"against {before:.3f} nats, a gain of {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}].",
    )


def _order(study: Study) -> Criterion:
    name, found = "order kept by twice the steps", study.order_kept
    if found is None or study.num_longer < LONGER_SITES:
        return _missing(
            name,
            ORDER_KEPT,
            f"{study.num_longer or 'No'} sites were trained for twice as many steps; the rule needs {LONGER_SITES}.",
        )
    holds = found >= ORDER_KEPT
    return Criterion(
        name,
        found,
        ORDER_KEPT,
        holds,
        f"Twice as many steps {'keep' if holds else 'do not keep'} the order of {study.num_longer} sites: Spearman "
        f"{found:.2f}, needed {ORDER_KEPT}.",
    )


def _interior(study: Study) -> Criterion:
    name, searched = "interior learning rates", study.num_searched
    if not searched:
        return _missing(name, INTERIOR, "No learning rate was searched.")
    share = study.num_interior / searched
    return Criterion(
        name,
        share,
        INTERIOR,
        share >= INTERIOR,
        f"{study.num_interior} of {searched} searched learning rates are interior: {share:.0%}, needed {INTERIOR:.0%}.",
    )


def _attainable(study: Study) -> Criterion:
    name, found = "attainable correlation", study.attainable
    if found.spearman is None:
        return _missing(name, ATTAINABLE, "The attainable correlation is not known from one seed.")
    holds = found.spearman >= ATTAINABLE
    return Criterion(
        name,
        found.spearman,
        ATTAINABLE,
        holds,
        f"The attainable correlation is {found.spearman:.2f} [{found.low:.2f}, {found.high:.2f}], needed {ATTAINABLE}.",
    )


def _missing(name: str, threshold: float, sentence: str) -> Criterion:
    return Criterion(name, None, threshold, False, sentence)
