"""Options that several commands have together: the model and what it is asked, and how it is loaded.

A command takes a bundle as one argument; :func:`flat` makes options of the command of its fields, which typer reads.
Fields have the names of the fields that they set in a class of options, whatever the option is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

from steerscope.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_TASK,
    PANELS,
    Address,
    ChatTemplate,
    Device,
    Dtype,
    EditBias,
    EditFamily,
    EditRank,
    EditScale,
    Engine,
    ModelName,
    OwnExamples,
    Revision,
    SelectionExamples,
    StepBatch,
    TaskFiles,
    TaskName,
    TestExamples,
    TrustRemoteCode,
    WorkerCpus,
    WorkerGpus,
)
from steerscope.errors import InputError
from steerscope.experiments.tasks import FileTask, Task, chat_task, get_task


@dataclass(frozen=True)
class Bundle:
    """Options of a command that are fields of a class of options."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by their names, to make the class of options of."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Loading(Bundle):
    """How the model is loaded; by the names of :data:`steerscope.option_types.LOADING`."""

    device: Device = "cpu"
    dtype: Dtype = "float32"
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False


@dataclass(frozen=True)
class Cluster(Bundle):
    """What carries packs of runs; by the names of ``CARRYING`` of ``steerscope.experiments.groundwork.carriers``."""

    engine: Engine = "local"
    address: Address = None
    num_cpus: WorkerCpus = None
    num_gpus: WorkerGpus = None


@dataclass(frozen=True)
class SiteTraining(Bundle):
    """Edits that are trained at many sites, and what chooses and tests them, of a sweep and of a search."""

    family: EditFamily = "linear"
    rank: EditRank = None
    bias: EditBias = None
    scale: EditScale = "none"
    batch_size: StepBatch = 24
    num_selection: SelectionExamples = 256
    num_test: TestExamples = 512


@dataclass(frozen=True)
class Asked:
    """The model, and what it is asked."""

    model: ModelName = DEFAULT_MODEL
    task: TaskName = None
    data: OwnExamples = None
    data_dir: TaskFiles = None
    chat_template: ChatTemplate = False

    def chosen_task(self, loading: Loading) -> Task:
        """Return the task, asked through a chat template if wanted; without any option, the default one.

        Raises:
            InputError: Two options contradict each other, what they name cannot be used, or there is no chat template.
        """
        found = self._named_task()
        if not self.chat_template:
            return found
        from steerscope.models.load import load_tokenizer

        revision, trusted = loading.revision, loading.trust_remote_code
        return chat_task(found, load_tokenizer(self.model, revision=revision, trust_remote_code=trusted))

    def _named_task(self) -> Task:
        if self.data is None:
            return get_task(DEFAULT_TASK if self.task is None else self.task, self.data_dir)
        for name, value in (("--task", self.task), ("--data-dir", self.data_dir)):
            if value is not None:
                raise InputError(
                    f"--data {str(self.data)!r} and {name} {str(value)!r} exclude each other. Leave one of them out."
                )
        return FileTask.read(self.data)


def _panel(one: inspect.Parameter) -> int:
    """Return the place of an option's panel; arguments, which have none, stand before."""
    panels = [getattr(told, "rich_help_panel", None) for told in getattr(one.annotation, "__metadata__", ())]
    return next((PANELS.index(panel) for panel in panels if panel in PANELS), -1)


def flat(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the fields of its bundles (arguments that are dataclasses) as arguments of its own.

    They come panel by panel, in the order of :data:`~steerscope.cli.options.PANELS`.
    """
    bundles: dict[str, Any] = {}
    taken: list[inspect.Parameter] = []
    for one in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(one.annotation):
            taken.append(one)
            continue
        bundles[one.name] = one.annotation
        hints = get_type_hints(one.annotation, include_extras=True)
        taken += [
            inspect.Parameter(field.name, one.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
            for field in fields(one.annotation)
        ]

    taken.sort(key=_panel)

    @wraps(command)
    def run(**given: Any) -> Any:
        for name, bundle in bundles.items():
            given[name] = bundle(**{field.name: given.pop(field.name) for field in fields(bundle)})
        return command(**given)

    run.__signature__ = inspect.Signature([one.replace(kind=one.KEYWORD_ONLY) for one in taken])  # type: ignore[attr-defined]
    return run
