"""The run of a configuration with a seed, and what a store keeps of it."""

from __future__ import annotations

import math
from typing import Any

from steerscope.experiments.engine.judge import Judged
from steerscope.experiments.engine.loop import TrainedRun
from steerscope.experiments.engine.spec import RunSpec
from steerscope.steering.config import SteeringConfig


def spec_of(config: SteeringConfig, learning_rate: float, seed: int) -> RunSpec:
    """Return the run of a configuration with a seed: of its start and of its training examples.

    Args:
        config: The edit.
        learning_rate: Peak learning rate of AdamW.
        seed: Of the edit's start and of its training examples.

    Returns:
        What the engine trains.
    """
    return RunSpec(seeded(config, seed), learning_rate, seed)


def seeded(config: SteeringConfig, seed: int) -> SteeringConfig:
    """Return a configuration with the seed of a run.

    Args:
        config: The edit.
        seed: The seed that replaces the configuration's own.

    Returns:
        A copy that differs in its seed alone.
    """
    return SteeringConfig.from_dict({**config.to_dict(), "seed": seed})


def trained_record(run: TrainedRun, judged: Judged, seconds: float) -> dict[str, Any]:
    """Return what a store keeps of a run's training.

    Args:
        run: What it came to.
        judged: On selection examples.
        seconds: It took.

    Returns:
        Selection loss in nats and accuracy, training losses in nats, seconds, and whether the run diverged.
    """
    return {
        "selection_loss": _loss(judged, run.diverged),
        "selection_accuracy": judged.accuracy,
        "diverged": run.diverged,
        "train_losses": [round(loss, 5) if math.isfinite(loss) else None for loss in run.losses],
        "seconds": seconds,
    }


def tested_record(judged: Judged, diverged: bool) -> dict[str, Any]:
    """Return what a store keeps of a run's test.

    Args:
        judged: On test examples.
        diverged: Whether its training diverged.

    Returns:
        Test loss in nats, infinite where the run diverged, and accuracy.
    """
    return {
        "loss": _loss(judged, diverged),
        "accuracy": judged.accuracy,
    }


def _loss(judged: Judged, diverged: bool) -> float:
    return math.inf if diverged or not math.isfinite(judged.loss) else judged.loss
