"""Apply the rule of admission to a site table."""

from __future__ import annotations

import numpy as np

from steerscope.experiments.agreement.attainable import attainable
from steerscope.experiments.agreement.correlations import finite_losses, spearman_or_zero
from steerscope.experiments.site_tables.admission import BEST, Admission, Study, admission_of
from steerscope.experiments.site_tables.common import Common, common_outcomes
from steerscope.experiments.site_tables.table import SiteOutcome, SiteTable


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
            accuracies=over_sites([one.accuracies for one in best]),
            losses=over_sites([one.losses for one in best]),
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


def over_sites(values: list[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the mean over sites, seed by seed."""
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
    return float(np.sqrt(np.mean(squares) * table.schedule.batch_size)) if squares else None
