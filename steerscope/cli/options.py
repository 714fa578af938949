"""Options that several commands have, in the same words."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from steerscope.errors import InputError
from steerscope.experiments.tasks import FileTask, Task, get_task, task_names

DEFAULT_MODEL, DEFAULT_TASK = "smollm2-135m", "listops"

ModelName = Annotated[str, typer.Argument(help="smollm2-135m, a folder, a .gguf file or a Hugging Face name.")]
TaskName = Annotated[
    str | None, typer.Option(help=f"One of {', '.join(task_names())}; without it and --data, {DEFAULT_TASK}.")
]
TaskFiles = Annotated[
    Path | None,
    typer.Option(help="Folder with the task's files; without it, tasks that can be are generated, others downloaded."),
]
OwnExamples = Annotated[
    Path | None,
    typer.Option(help="Your examples as JSON lines instead of --task: 60% train, 15% validation, 25% test."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face name.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the model.")]
JsonTarget = Annotated[str | None, typer.Option(help="Write the result as JSON to this file, or - for stdout.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the report in a folder that is not empty.")]
Quiet = Annotated[bool, typer.Option(help="No progress.")]


def chosen_task(task: str | None, data: Path | None, data_dir: Path | None) -> Task:
    """Return the task that ``--task``, ``--data`` and ``--data-dir`` name.

    Args:
        task: Name of a task.
        data: A file of the user's own examples.
        data_dir: Folder with the files of the named task.

    Returns:
        The task; without any option, the default one.

    Raises:
        InputError: Two of them contradict each other, or what they name cannot be used.
    """
    if data is None:
        return get_task(DEFAULT_TASK if task is None else task, data_dir)
    for option, value in (("--task", task), ("--data-dir", data_dir)):
        if value is not None:
            raise InputError(
                f"--data {str(data)!r} and {option} {str(value)!r} exclude each other. Leave one of them out."
            )
    return FileTask.read(data)


def show_warnings(task: Task) -> None:
    """Print what is to be known about a user's examples."""
    for warning in task.warnings if isinstance(task, FileTask) else ():
        print(f"  warning: {warning}", file=sys.stderr, flush=True)


def command_line() -> str:
    """Return what the user typed, to be kept with results."""
    return shlex.join(["steerscope", *sys.argv[1:]])
