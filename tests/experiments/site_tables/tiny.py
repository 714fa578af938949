"""Made-up site tables: runs whose losses follow a rule that is known."""

from __future__ import annotations

import math

import numpy as np

from steerscope.experiments.site_tables.table import Base, SiteRun, SiteTable
from steerscope.experiments.site_tables.table_parts import TableData, TableSchedule, TrainedEdit
from tests.identities import identity

KINDS = ("attn_out", "mlp_in", "mlp_out", "resid_post")
# What a kind costs in nats; no baseline has this order.
BETTER = {"mlp_in": 0.0, "attn_out": 0.12, "resid_post": 0.24, "mlp_out": 0.36}
STEPS, BATCH = 32, 16


def truth_of(layers: int = 6, seed: int = 0) -> dict[str, float]:
    """Return the loss that every site tends to: worse with depth, within a layer by kind, and a little of its own."""
    rng = np.random.default_rng(seed)
    return {
        f"{layer}.{kind}": 1.0 + 0.08 * layer + BETTER[kind] + float(rng.normal(0, 0.03))
        for layer in range(layers)
        for kind in KINDS
    }


def made_up(
    layers: int = 6,
    *,
    seeds: int = 3,
    noise: float = 0.01,
    longer: int = 12,
    longer_order: int = 1,
    edge: int = 0,
    task: str = "sums",
    seed: int = 0,
    **changes: object,
) -> SiteTable:
    """Return a table that is admitted unless told otherwise.

    Args:
        layers: Blocks of the model.
        seeds: Training seeds.
        noise: Standard deviation of a run's loss, nats.
        longer: Sites that are trained for twice as long.
        longer_order: 1 if they keep their order, -1 if it turns round.
        edge: Sites whose chosen rate is the lowest tried.
        task: Its name.
        seed: Of the noise and of what sites have of their own.
        changes: Fields of the table.
    """
    rng = np.random.default_rng(seed)
    truth = truth_of(layers, seed)
    runs = []
    for place, (site, loss) in enumerate(truth.items()):
        rates = (0.01, 0.03, 0.1) if place < edge else (0.003, 0.01, 0.03)
        for number in range(seeds):
            final = loss + float(rng.normal(0, noise))
            runs.append(run(site, 0.01, number, final, rng))
        runs += [run(site, rate, 0, loss + 0.2, rng, tested=False) for rate in rates if rate != 0.01]
        if place % max(len(truth) // max(longer, 1), 1) == 0 and longer:
            runs.append(run(site, 0.01, 0, 1.0 + longer_order * (loss - 1) / 2, rng, steps=2 * STEPS))
    fields: dict[str, object] = {
        "model": identity(layers=layers),
        "task": task,
        "edit": TrainedEdit("linear", rank=8),
        "schedule": TableSchedule(steps=STEPS, batch_size=BATCH, warmup=0.125, clip=1.0),
        "dtype": "float32",
        "data": TableData(test="abc", num_test=500, num_selection=250),
        "base": Base(2.4, 0.1, 0.12, 2.3, 0.12, 1.1),
        "runs": tuple(runs),
        "versions": {},
        "command": "steerscope sweep small --task sums",
        "scores": {"right": {site: -loss for site, loss in truth.items()}},
    }
    return SiteTable(**(fields | changes))  # type: ignore[arg-type]


def run(
    site: str, rate: float, seed: int, loss: float, rng: np.random.Generator, *, tested: bool = True, steps: int = STEPS
) -> SiteRun:
    """Return a run that ends at a loss; infinite for one that diverged."""
    steps_taken = np.arange(1, steps + 1)
    diverged = not math.isfinite(loss)
    falling = 2.4 if diverged else loss + (2.4 - loss) * np.exp(-steps_taken / (steps / 4))
    losses = falling + rng.normal(0, 0.02, size=steps)
    accuracy = 0.1 if diverged else float(np.clip(1.5 - loss, 0.1, 0.95))
    return SiteRun(
        site=site,
        learning_rate=rate,
        seed=seed,
        steps=steps,
        selection_loss=None if diverged else loss + float(rng.normal(0, 0.01)),
        selection_accuracy=accuracy,
        loss=loss if tested and not diverged else None,
        accuracy=accuracy if tested else None,
        train_losses=tuple(float(v) for v in losses),
        seconds=1.0,
        diverged=diverged,
    )
