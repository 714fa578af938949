"""Apply the rule of admission to a site table, and to a validation as far as it kept what the rule looks at."""

from __future__ import annotations

import math

import numpy as np

from steerscope.experiments.agreement.attainable import attainable
from steerscope.experiments.agreement.correlations import finite_losses, spearman_or_zero
from steerscope.experiments.site_tables.admission import BEST, Admission, Study, admission_of
from steerscope.experiments.site_tables.common import Common, common_outcomes
from steerscope.experiments.site_tables.table import SiteOutcome, SiteTable
from steerscope.experiments.validation.result import Validation
from steerscope.sites import parse_site


def admitted(table: SiteTable, *, seed: int = 0) -> Admission:
    """Say whether a table may judge scores.

    Args:
        table: The table.
        seed: Of the bootstrap.

    Returns:
        The criteria, each with whether the table meets it.

    Raises:
        InputError: It has too few tested sites to say anything.
    """
    common = common_outcomes(table)
    best = sorted(common.outcomes, key=lambda one: float(np.mean(one.selection_losses)))[:BEST]
    longer = table.longer()
    both = [one for one in common.outcomes if str(one.site) in longer]
    kept = None
    if len(both) > 2:
        first = finite_losses(np.array([one.loss for one in both]))
        kept = spearman_or_zero(first, finite_losses(np.array([longer[str(one.site)] for one in both])))
    searched = [one for one in table.outcomes() if one.tuned]
    base = table.base
    return admission_of(
        Study(
            best=tuple(str(one.site) for one in best),
            accuracies=_over_sites([one.accuracies for one in best]),
            losses=_over_sites([one.losses for one in best]),
            num_test=table.num_test,
            base_accuracy=base.accuracy,
            majority=base.majority,
            recalibrated_accuracy=base.recalibrated_accuracy,
            recalibrated_loss=base.recalibrated_loss,
            loss_spread=_spread(table, common, best),
            order_kept=kept,
            num_longer=len(both),
            num_interior=sum(one.interior for one in searched),
            num_searched=len(searched),
            attainable=attainable(common.losses, common.layers, seed=seed),
        )
    )


def admitted_validation(
    validation: Validation,
    *,
    recalibrated_loss: float | None = None,
    recalibrated_accuracy: float | None = None,
    seed: int = 0,
) -> Admission:
    """Say whether a validation may judge scores; it keeps neither longer runs nor the spread over examples.

    Args:
        validation: The validation.
        recalibrated_loss: Loss of the recalibrated model on its test examples, where it is known from elsewhere, nats.
        recalibrated_accuracy: Its accuracy.
        seed: Of the bootstrap.

    Returns:
        The criteria, each with whether the validation meets it.
    """

    def selection_loss(tried: dict[str, float | None]) -> float:
        return min((loss for loss in tried.values() if loss is not None), default=math.inf)

    best = sorted(validation.sites, key=lambda one: selection_loss(one.tried))[:BEST]
    searched = [one for one in validation.sites if len(one.tried) > 1]
    layers = np.array([parse_site(one.method.partition("+")[0]).layer for one in validation.sites])
    return admission_of(
        Study(
            best=tuple(one.method for one in best),
            accuracies=_over_sites([one.accuracies for one in best]),
            losses=_over_sites([tuple(math.inf if v is None else v for v in one.losses) for one in best]),
            num_test=int(validation.before["n_test"]),
            base_accuracy=validation.before["accuracy"],
            majority=validation.before["majority"],
            recalibrated_accuracy=recalibrated_accuracy,
            recalibrated_loss=recalibrated_loss,
            loss_spread=None,
            order_kept=None,
            num_longer=0,
            num_interior=sum(one.interior for one in searched),
            num_searched=len(searched),
            attainable=attainable(validation.losses(), layers, seed=seed),
        )
    )


def _over_sites(values: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.mean(values, axis=0))


def _spread(table: SiteTable, common: Common, best: list[SiteOutcome]) -> float | None:
    """Return the standard deviation over examples of the loss of trained runs, from their last batches.

    A batch's mean has the variance of an example over the number of examples. Differences of successive steps leave
    out that the loss still falls: their mean square is twice the variance.
    """
    last = max(table.steps // 4, 8)
    squares = []
    for seed in common.seeds:
        found = table.trajectories(seed)
        for one in best:
            losses = found.get(str(one.site), np.array([]))[-last:]
            if len(losses) == last and np.isfinite(losses).all():
                squares.append(np.mean(np.diff(losses) ** 2) / 2)
    return float(np.sqrt(np.mean(squares) * table.schedule["batch_size"])) if squares else None
