"""What studies of variants of an edit share: one sweep of a task, and what their file says of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerscope import get_task
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.engine.sweep import Sweep
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.sweeping.preparing import read_scales
from steerscope.installed import package_versions
from steerscope.models.load import LoadedModel


def sweep_of(loaded: LoadedModel, task: str, out: Path, seeds: list[int], **given: Any) -> Sweep:
    """Return a sweep whose runs are kept in a folder.

    Args:
        loaded: The model.
        task: A generated task.
        out: The folder.
        seeds: Of training.
        given: ``steps``, ``batch_size``, ``minutes``, ``progress``.

    Returns:
        The sweep, with the scales of what sites read.
    """
    schedule = Schedule(steps=given["steps"], batch_size=given["batch_size"])
    data = SplitData(loaded, splits_of_task(get_task(task)), schedule, 128, 256)
    data.check(seeds)
    return Sweep(
        loaded, data, schedule, RunStore(out / "runs"), read_scales(loaded, data, 0), progress=given.get("progress"),
        deadline=time.monotonic() + 60 * given["minutes"],
    )  # fmt: skip


def about(sweep: Sweep, task: str) -> Mapping[str, Any]:
    """Return what a file says of the training, and of the model without any.

    Args:
        sweep: The sweep.
        task: Its task.

    Returns:
        JSON-able values.
    """
    base = sweep.untrained()
    return {
        "model": sweep.loaded.identity.as_dict(),
        "task": task,
        "steps": sweep.schedule.steps,
        "batch_size": sweep.schedule.batch_size,
        "untrained": {"loss": base.loss, "accuracy": base.accuracy},
        "versions": package_versions(),
    }
