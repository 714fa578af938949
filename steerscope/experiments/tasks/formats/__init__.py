"""One file per task: its prompt, its completion, how a generation is read, and where its rows come from.

:data:`FORMATS` lists them; :func:`get_answer_task` makes a task of one.
"""

from __future__ import annotations

from pathlib import Path

from steerscope.errors import InputError, did_you_mean
from steerscope.experiments.tasks.answer_task import AnswerForm, AnswerTask, RowsTask
from steerscope.experiments.tasks.formats import aqua, arc, boolq, gsm8k, listops, winogrande
from steerscope.experiments.tasks.sources import HubSource, hub_rows, local_rows

FORMATS: dict[str, tuple[AnswerForm, HubSource | None]] = {
    "listops": (listops.FORM, None),
    "listops_bare": (listops.BARE, None),
    "listops_gen": (listops.FORM_GENERATED_FILES, None),
    "boolq": (boolq.FORM, boolq.HUB),
    "winogrande": (winogrande.FORM, winogrande.HUB),
    "arc_easy": (arc.EASY, arc.HUB_EASY),
    "arc_challenge": (arc.CHALLENGE, arc.HUB_CHALLENGE),
    "gsm8k": (gsm8k.FORM, gsm8k.HUB),
    "aqua": (aqua.FORM, aqua.HUB),
}
# Tasks that ask another task's questions in another way.
_SAME_ROWS = {"listops_bare": "listops"}


def answer_task_names() -> list[str]:
    """Return the names :func:`get_answer_task` accepts."""
    return sorted(FORMATS)


def get_answer_task(name: str, folder: str | Path | None = None) -> AnswerTask:
    """Return the task called ``name``: from files in ``folder``, else generated (ListOps) or from the hub.

    Args:
        name: One of :func:`answer_task_names`.
        folder: Where ``<name>-<part>.jsonl.gz`` are; without it the ``datasets`` package is used.

    Raises:
        InputError: No such task, no such folder, or neither a folder nor the ``datasets`` package.
    """
    if name not in FORMATS:
        raise InputError(
            f"there is no task {name!r}; expected one of {', '.join(answer_task_names())}."
            f"{did_you_mean(str(name), answer_task_names())}"
        )
    form, hub = FORMATS[name]
    if folder is not None:
        return RowsTask(form, local_rows(folder, _SAME_ROWS.get(name, name)))
    if name in listops.GENERATED:
        return listops.GENERATED[name]
    if hub is None:
        raise InputError(f"task {name!r} is read from files; give the folder that holds them ([[data_dir]]).")
    return RowsTask(form, hub_rows(hub, name))
