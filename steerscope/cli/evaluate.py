"""``steerscope evaluate``: how often a model, with or without an adapter, is right on a task."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from steerscope.cli.bundles import Asked, Bundle, Loading
from steerscope.cli.options import DATA, MODEL, RESULTS, RUNNING, JsonTarget, Quiet, command_line, option, show_warnings
from steerscope.cli.words import as_typed


@dataclass(frozen=True)
class _Evaluation(Bundle):
    """By the names of ``EvaluateOptions``."""

    split: Annotated[str, option("{values}.", DATA, values=("train", "validation", "test"))] = "test"
    max_examples: Annotated[int | None, option("Most questions; without it, all.", DATA)] = None
    batch_size: Annotated[int, option("Prompts per batch.", RUNNING)] = 16
    max_new_tokens: Annotated[int | None, option("Longest generation; without it, the task's.", RUNNING)] = None
    likelihoods: Annotated[bool, option("Also likelihoods of choices and the loss.", RESULTS)] = True
    seed: Annotated[int, option("Which questions, when not all are used.", RUNNING)] = 0


def evaluate(
    asked: Asked,
    *,
    adapter: Annotated[Path | None, option("Folder of a saved adapter (steering or PEFT).", MODEL)] = None,
    wanted: _Evaluation,
    out: Annotated[Path | None, option("New folder for results.json and generations.jsonl.", RESULTS)] = None,
    json: JsonTarget = None,
    loading: Loading,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy by greedy generation, with its 95% interval and what always one answer would reach."""
    from steerscope.cli.output import check_folder, check_json_target, give_json
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import evaluate as evaluate_model
    from steerscope.experiments.evaluation.command import EvaluateOptions
    from steerscope.folders import Kind

    options = EvaluateOptions(**wanted.as_dict(), **loading.as_dict())
    options.check()
    check_json_target(json, "majority_answer")
    if out is not None:
        check_folder(out, Kind.RUN, overwrite=False, advice="")
    chosen = asked.chosen_task(loading)
    show_warnings(chosen)
    with stage_progress(quiet=quiet) as show:
        found = evaluate_model(
            asked.model, chosen, options, adapter=adapter, out=out, progress=show, command=command_line()
        )
    if not give_json(json, found.to_json(), "majority_answer"):
        typer.echo("\n".join(as_typed(text) for text in found.paragraphs()))
    if out is not None:
        print(f"results: {out}", file=sys.stderr)
