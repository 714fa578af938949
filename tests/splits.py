"""Examples of a test as the parts that trainings take."""

from __future__ import annotations

from collections.abc import Sequence

from steerscope import Example, FileTask
from steerscope.experiments.groundwork.splits import DataSplits, splits_of_task


def splits_of_examples(name: str, examples: Sequence[Example]) -> DataSplits:
    """Return one list of examples cut into three parts by content."""
    return splits_of_task(FileTask.of(name, list(examples)))
