"""``steerscope evaluate``: how often a model, with or without an adapter, is right on a task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from steerscope.cli.options import (
    DEFAULT_MODEL,
    Device,
    Dtype,
    ModelName,
    OwnExamples,
    Quiet,
    Revision,
    TaskFiles,
    TaskName,
    TrustRemoteCode,
    chosen_task,
    command_line,
    show_warnings,
)
from steerscope.cli.words import as_typed


def evaluate(
    model: ModelName = DEFAULT_MODEL,
    task: TaskName = None,
    data: OwnExamples = None,
    data_dir: TaskFiles = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a saved adapter (steering or PEFT).")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    max_examples: Annotated[int | None, typer.Option(help="Use so many questions; without it, all.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for results.json and generations.jsonl.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per batch.")] = 16,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest generation; without it, the task's.")] = None,
    likelihoods: Annotated[bool, typer.Option(help="Also likelihoods of choices and the loss.")] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Annotated[int, typer.Option(help="Which questions, when not all are used.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy by greedy generation, with its 95% interval and what always one answer would reach."""
    from steerscope.cli.output import check_folder
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import evaluate as evaluate_model
    from steerscope.experiments.evaluation.command import EvaluateOptions
    from steerscope.folders import Kind

    options = EvaluateOptions(
        split=split,
        max_examples=max_examples,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        likelihoods=likelihoods,
        seed=seed,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    options.check()
    if out is not None:
        check_folder(out, Kind.RUN, overwrite=False, advice="")
    chosen = chosen_task(task, data, data_dir)
    show_warnings(chosen)
    with stage_progress(quiet=quiet) as show:
        found = evaluate_model(model, chosen, options, adapter=adapter, out=out, progress=show, command=command_line())
    typer.echo("\n".join(as_typed(text) for text in found.paragraphs()))
    if out is not None:
        print(f"results: {out}", file=sys.stderr)
