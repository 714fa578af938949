"""Tasks: named sources of examples with training, validation and test parts that never overlap.

One task serves every command: ranking, validation, training and evaluation show a model the same prompt. Its examples
are read by likelihood (of choices, or of the completion) and by generation, with the task's parser.
"""

from __future__ import annotations

from pathlib import Path

from steerscope.errors import InputError, did_you_mean, same_name
from steerscope.experiments.tasks.chat import chat_task
from steerscope.experiments.tasks.file_task import FileTask
from steerscope.experiments.tasks.formats import FORMATS, GENERATED
from steerscope.experiments.tasks.formats.generated import GeneratedTask
from steerscope.experiments.tasks.listops import ListOps
from steerscope.experiments.tasks.sources import hub_rows, local_rows
from steerscope.experiments.tasks.task import RowsTask, Split, Task, TaskExample, TaskForm, at_most

__all__ = [
    "FileTask",
    "GeneratedTask",
    "ListOps",
    "RowsTask",
    "Split",
    "Task",
    "TaskExample",
    "TaskForm",
    "at_most",
    "chat_task",
    "get_task",
    "task_names",
]

# Names of before, and what to use instead.
_GONE = {"listops_bare": ("listops", "its prompt is '[MAX 3 5]=' and its completion '5'")}


def task_names() -> list[str]:
    """Return the names :func:`get_task` accepts."""
    return sorted(FORMATS)


def get_task(name: str, folder: str | Path | None = None) -> Task:
    """Return the task called ``name``: from files in ``folder``, else generated or from the hub.

    Args:
        name: One of :func:`task_names`.
        folder: Where the files are (``boolq-train.jsonl.gz``); without it tasks in ``GENERATED`` are drawn, and others
            come through the ``datasets`` package.

    Returns:
        The task.

    Raises:
        InputError: No such task, no such folder, or neither a folder nor the ``datasets`` package.

    Example:
        >>> examples = get_task("listops").split("train", n=2)
        >>> [one.prompt[-1] + one.completion in {f"={digit}" for digit in range(10)} for one in examples]
        [True, True]
    """
    name = same_name(name, [*task_names(), *_GONE])
    if name in _GONE:
        now, why = _GONE[name]
        raise InputError(f"task {name!r} is called {now!r} now ({why}). Name {now!r}.")
    if name not in FORMATS:
        raise InputError(
            f"there is no task {name!r}; expected one of {', '.join(task_names())}."
            f"{did_you_mean(str(name), task_names())} For examples of your own, pass a file as [[data]]."
        )
    form, stem, hub = FORMATS[name]
    if folder is not None:
        return RowsTask(form, local_rows(folder, stem))
    if name in GENERATED:
        return GENERATED[name]
    if hub is None:
        raise InputError(f"task {name!r} is read from files; give the folder that holds them ([[data_dir]]).")
    return RowsTask(form, hub_rows(hub, stem))
