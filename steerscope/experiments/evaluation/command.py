"""Put an adapter on a model, evaluate, and keep what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from steerscope.analysis.provenance import RECIPE, content_hash
from steerscope.analysis.stopwatch import StageProgress
from steerscope.experiments.evaluation.adapters import SavedAdapter, attached, with_adapter
from steerscope.experiments.evaluation.evaluate import evaluate
from steerscope.experiments.runs.evaluation import Evaluation
from steerscope.experiments.runs.folder import GENERATIONS, RunFolder
from steerscope.experiments.runs.memory import peak_memory
from steerscope.experiments.runs.records import RunConfig, RunResults
from steerscope.experiments.tasks.supervised import answer_tokens
from steerscope.experiments.tasks.task import PARTS, TaskExample, TaskForm, check_part
from steerscope.files import written_aside
from steerscope.folders import ADAPTER_WEIGHTS
from steerscope.installed import package_versions
from steerscope.models.bundled import sha256_of
from steerscope.models.load import LoadedModel
from steerscope.models.packed import num_weights
from steerscope.option_types import LoadingOptions, plain_fields, require_least


@dataclass(frozen=True)
class EvaluateOptions(LoadingOptions):
    """How a model is loaded (:class:`~steerscope.option_types.LoadingOptions`) and asked.

    Attributes:
        split: Which part of the task: ``train``, ``validation`` or ``test``.
        max_examples: Most questions; all unless given.
        batch_size: Prompts per batch.
        max_new_tokens: Longest generation; the task's own limit unless given.
        likelihoods: Whether likelihoods of choices and the loss are computed too.
        seed: Which questions, when not all are used.
    """

    split: str = "test"
    max_examples: int | None = None
    batch_size: int = 16
    max_new_tokens: int | None = None
    likelihoods: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        plain_fields(self, split=PARTS)

    def check(self) -> None:
        """Refuse options that cannot work.

        Raises:
            InputError: A number out of range, or no such part.
        """
        require_least(self, batch_size=1, max_new_tokens=1, max_examples=1)
        check_part(self.split)


def evaluate_model(
    load: Callable[[], LoadedModel],
    form: TaskForm,
    examples: Sequence[TaskExample],
    adapter: SavedAdapter | None,
    options: EvaluateOptions,
    out: Path | None,
    *,
    keeps: bool = False,
    progress: StageProgress | None = None,
    command: str = "",
) -> Evaluation:
    """Evaluate a model, with an adapter or without.

    Args:
        load: Returns the model; called once.
        form: The task.
        examples: Its questions.
        adapter: What :func:`~steerscope.experiments.evaluation.adapters.read_adapter` found, or ``None``.
        options: How the model is asked.
        out: A new folder: for the test part a run folder, for others ``evaluation.json`` and the generations.
        keeps: Take the adapter off again: the model is somebody's.
        progress: Called with stages ``load``, ``generate`` and ``likelihood``.
        command: What the user typed, kept with the results.

    Returns:
        The evaluation, as it is written to ``out`` where there is one.

    Raises:
        InputError: The model cannot be loaded, the adapter is of another model, or the folder is not empty.
    """
    show: StageProgress = progress or (lambda stage, done, total: None)
    since = time.perf_counter()
    show("load", 0, 1)
    loaded = load()
    own = loaded.identity.n_params
    if adapter is None:
        on: AbstractContextManager[nn.Module] = nullcontext(loaded.model)
    else:
        on = attached(loaded, adapter) if keeps else nullcontext(with_adapter(loaded, adapter))
    with on as model:
        total = num_weights(model)
        show("load", 1, 1)
        folder = None
        if out is not None and options.split == "test":
            folder = RunFolder.create(out, _config(form, examples, adapter, options, loaded))
        found, generations = evaluate(
            model,
            loaded.tokenizer,
            form,
            examples,
            split=options.split,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            max_length=loaded.max_length,
            likelihoods=options.likelihoods,
            progress=show,
        )
        if folder is not None:
            results = RunResults.of(
                folder.config,
                found,
                trainable_parameters=total - own + (0 if adapter is None else adapter.changed),
                total_parameters=total,
                tokens_per_second=found.generated_tokens / found.seconds,
                peak_memory=peak_memory(loaded.device),
                seconds=time.perf_counter() - since,
                versions=package_versions(),
                command=command,
                model_from_files=not keeps,
            )
            folder.finish(results, generations)
        elif out is not None:
            with written_aside(out, "the evaluation", last=("evaluation.json",)) as aside:
                (aside / GENERATIONS).write_text("".join(f"{one.to_line()}\n" for one in generations), encoding="utf-8")
                found.save(aside / "evaluation.json")
    return found


def _config(
    form: TaskForm,
    examples: Sequence[TaskExample],
    adapter: SavedAdapter | None,
    options: EvaluateOptions,
    loaded: LoadedModel,
) -> RunConfig:
    settings: dict[str, Any] = {
        "evaluated": True,
        "batch_size": options.batch_size,
        "max_new_tokens": options.max_new_tokens or answer_tokens(form, examples, loaded.tokenizer).limit,
        "questions_seed": options.seed,
        "likelihoods": options.likelihoods,
        "data": {"test": content_hash(examples, ordered=False)},
        "recipe": RECIPE,
    }
    if adapter is not None:
        # The weights tell adapters apart that say the same of themselves, such as those of two training seeds.
        settings |= {
            "adapter": dict(adapter.settings),
            "adapter_folder": str(adapter.folder),
            "adapter_sha256": sha256_of(adapter.folder / ADAPTER_WEIGHTS),
        }
    return RunConfig(
        task=form.name,
        method="none" if adapter is None else adapter.method,
        sites=() if adapter is None else adapter.sites,
        rank=None if adapter is None else adapter.rank,
        seed=int((adapter.settings.get("seed") or 0) if adapter is not None else 0),
        model=loaded.identity,
        settings=settings,
    )
