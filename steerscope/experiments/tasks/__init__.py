"""Tasks: named sources of examples with training, validation and test parts that never overlap.

Two sorts: :func:`get_task` gives short prompts whose choices are scored, for rankings and their validation;
:func:`get_answer_task` gives prompts whose answers are generated and read, for training and evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from steerscope.analysis.data.examples import Example
from steerscope.errors import InputError, did_you_mean
from steerscope.experiments.tasks.answer_task import AnswerExample, AnswerTask
from steerscope.experiments.tasks.formats import answer_task_names, get_answer_task
from steerscope.experiments.tasks.listops import ListOps
from steerscope.experiments.tasks.local import FORMS, LocalTask

__all__ = [
    "AnswerExample",
    "AnswerTask",
    "ListOps",
    "LocalTask",
    "Split",
    "Task",
    "answer_task_names",
    "get_answer_task",
    "get_task",
    "task_names",
]

Split = Literal["train", "validation", "test"]


class Task(Protocol):
    """What training and ranking need of a task."""

    @property
    def name(self) -> str:
        """The name :func:`get_task` knows it by."""

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""

    def split(self, split: Split, n: int, seed: int) -> list[Example]:
        """Return ``n`` different examples of one part of the task.

        No example of one part occurs in another, whatever ``n`` and the seeds, and the first ``n`` of a
        longer draw with the same seed are the shorter draw.

        Args:
            split: Which part.
            n: How many, at least 1.
            seed: Another seed, another draw.

        Raises:
            InputError: An argument is out of range, or the part has fewer than ``n`` examples.
        """


def task_names() -> list[str]:
    """Return the names :func:`get_task` accepts."""
    return sorted(["listops", *FORMS])


def get_task(name: str, folder: str | Path | None = None) -> Task:
    """Return the task called ``name``, with its default settings.

    Args:
        name: One of :func:`task_names`.
        folder: Where the files of a task are that is not generated (all but ``listops``).

    Raises:
        InputError: There is no such task, or it needs files and no folder was given.
    """
    if name not in task_names():
        raise InputError(
            f"there is no task {name!r}; expected one of {', '.join(task_names())}."
            f"{did_you_mean(str(name), task_names())} To use examples of your own, pass a .jsonl file."
        )
    if name == "listops":
        return ListOps()
    if folder is None:
        raise InputError(f"task {name!r} is read from files; give the folder that holds them ([[data_dir]]).")
    return LocalTask(name, Path(folder))
