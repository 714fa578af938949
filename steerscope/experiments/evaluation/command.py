"""Load a model, put an adapter on it, evaluate, and keep what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerscope.analysis.provenance import RECIPE, content_hash
from steerscope.analysis.stopwatch import StageProgress
from steerscope.experiments.evaluation.adapters import SavedAdapter, with_adapter
from steerscope.experiments.evaluation.evaluate import evaluate
from steerscope.experiments.runs.evaluation import Evaluation
from steerscope.experiments.runs.folder import GENERATIONS, RunFolder
from steerscope.experiments.runs.memory import peak_memory
from steerscope.experiments.runs.records import RunConfig, RunResults
from steerscope.experiments.tasks.supervised import answer_tokens
from steerscope.experiments.tasks.task import TaskExample, TaskForm
from steerscope.files import written_aside
from steerscope.folders import ADAPTER_WEIGHTS
from steerscope.installed import package_versions
from steerscope.models import load_model
from steerscope.models.bundled import sha256_of
from steerscope.models.load import LoadedModel
from steerscope.option_types import plain_fields


@dataclass(frozen=True)
class EvaluateOptions:
    """How a model is loaded and asked; see ``steerscope evaluate --help``."""

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    split: str = "test"
    batch_size: int = 16
    max_new_tokens: int | None = None
    likelihoods: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        plain_fields(self)


def evaluate_model(
    form: TaskForm,
    examples: Sequence[TaskExample],
    adapter: SavedAdapter | None,
    options: EvaluateOptions,
    out: Path | None,
    *,
    progress: StageProgress | None = None,
    command: str = "",
) -> Evaluation:
    """Evaluate a model by name, with an adapter or without.

    Args:
        form: The task.
        examples: Its questions.
        adapter: What :func:`~steerscope.experiments.evaluation.adapters.read_adapter` found, or ``None``.
        options: How the model is loaded and asked.
        out: A new folder: for the test part a run folder, for others ``evaluation.json`` and the generations.
        progress: Called with stages ``load``, ``generate`` and ``likelihood``.
        command: What the user typed, kept with the results.

    Raises:
        InputError: The model cannot be loaded, the adapter is of another model, or the folder is not empty.
    """
    show: StageProgress = progress or (lambda stage, done, total: None)
    since = time.perf_counter()
    show("load", 0, 1)
    loaded = load_model(
        options.model,
        device=options.device,
        dtype=options.dtype,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    model = loaded.model if adapter is None else with_adapter(loaded, adapter)
    own = loaded.identity.n_params
    total = sum(parameter.numel() for parameter in model.parameters())
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
        model=loaded.identity.as_dict(),
        settings=settings,
    )
