"""One file per task: its prompt, its completion, how a generation is read, and where its rows come from.

:data:`FORMATS` lists them: a form, the stem of its files, and where else its rows come from. :data:`GENERATED`
are those that are drawn from a seed unless files are named.
"""

from __future__ import annotations

from steerscope.experiments.tasks.formats import (
    aqua,
    arc,
    boolq,
    compare,
    edits,
    gsm8k,
    listops,
    recall,
    winogrande,
)
from steerscope.experiments.tasks.formats.generated import GeneratedTask
from steerscope.experiments.tasks.sources import HubSource
from steerscope.experiments.tasks.task import TaskForm

_ALL: tuple[tuple[TaskForm, str, HubSource | None], ...] = (
    (listops.FORM, "listops", None),
    (listops.PAPER, "listops", None),
    (listops.GEN, "listops_gen", None),
    (listops.GEN_PAPER, "listops_gen", None),
    (recall.FORM, "recall", None),
    (recall.CAPITAL, "recall", None),
    (recall.PLUS, "recall", None),
    *((task.form, task.name, None) for task in compare.GENERATED),
    (edits.FORM, "twice", None),
    (boolq.FORM, "boolq", boolq.HUB),
    (boolq.CLOSED, "boolq", boolq.HUB),
    (boolq.PAPER, "boolq", boolq.HUB),
    (winogrande.FORM, "winogrande", winogrande.HUB),
    (winogrande.PAPER, "winogrande", winogrande.HUB),
    (arc.EASY, "arc_easy", arc.HUB_EASY),
    (arc.EASY_SHORT, "arc_easy", arc.HUB_EASY),
    (arc.EASY_PAPER, "arc_easy", arc.HUB_EASY),
    (arc.CHALLENGE, "arc_challenge", arc.HUB_CHALLENGE),
    (arc.CHALLENGE_PAPER, "arc_challenge", arc.HUB_CHALLENGE),
    (aqua.FORM, "aqua", aqua.HUB),
    (aqua.PAPER, "aqua", aqua.HUB),
    (gsm8k.FORM, "gsm8k", gsm8k.HUB),
)
FORMATS = {form.name: (form, stem, hub) for form, stem, hub in _ALL}
GENERATED: dict[str, GeneratedTask] = {
    task.name: task for module in (listops, recall, compare, edits) for task in module.GENERATED
}
