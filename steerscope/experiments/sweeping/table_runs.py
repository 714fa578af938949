"""Runs between a store, where they are kept one by one, and a site table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from steerscope.experiments.site_tables.table import SiteRun
from steerscope.finite import or_infinite


def run_of(
    site: str,
    learning_rate: float,
    seed: int,
    steps: int,
    trained: Mapping[str, Any],
    tested: Mapping[str, Any] | None,
) -> SiteRun:
    """Return a kept run as a table has it, its losses rounded.

    Args:
        site: Where its edit is.
        learning_rate: Its peak.
        seed: Of its data and start.
        steps: Of its schedule.
        trained: What is kept of its training.
        tested: What is kept of its test, if it had one.

    Returns:
        One row of the table.
    """

    def known(loss: float) -> float | None:
        return round(loss, 6) if math.isfinite(loss) else None

    return SiteRun(
        site=site,
        learning_rate=learning_rate,
        seed=seed,
        steps=steps,
        selection_loss=known(float(trained["selection_loss"])),
        selection_accuracy=round(float(trained["selection_accuracy"]), 6),
        loss=None if tested is None else known(float(tested["loss"])),
        accuracy=None if tested is None else round(float(tested["accuracy"]), 6),
        train_losses=tuple(round(loss, 4) for loss in trained["train_losses"] if loss is not None),
        seconds=round(float(trained["seconds"]), 3),
        diverged=bool(trained["diverged"]),
    )


def records_of(run: SiteRun) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a run of a table as a store keeps it: its training, and its test if it had one; of :func:`run_of`."""
    trained = {
        "selection_loss": or_infinite(run.selection_loss),
        "selection_accuracy": run.selection_accuracy,
        "diverged": run.diverged,
        "train_losses": list(run.train_losses),
        "seconds": run.seconds,
    }
    return trained, None if run.accuracy is None else {"loss": or_infinite(run.loss), "accuracy": run.accuracy}
