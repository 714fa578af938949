"""``steerscope train``: train by one method on a task, save the adapter, and test it."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from steerscope.cli.bundles import Asked, Bundle, Loading
from steerscope.cli.options import (
    DATA,
    METHODS,
    MODEL,
    RESULTS,
    RUNNING,
    SITES,
    TRAINING,
    EditBias,
    EditScale,
    JsonTarget,
    Quiet,
    StepBatch,
    command_line,
    names_in,
    option,
    show_warnings,
)
from steerscope.errors import InputError


@dataclass(frozen=True)
class _Loading(Loading):
    dtype: Annotated[str, option("Of the model: float32, bfloat16 or float64; adapters are float32.", MODEL)] = (
        "float32"
    )


@dataclass(frozen=True)
class _Where:
    """What is trained, and where."""

    method: Annotated[str, option("What is trained: {values}.", SITES, values=METHODS)] = "post-block"
    site: Annotated[
        list[str] | None,
        option("Sites or kinds to edit, repeatable or comma-separated; without it all layers of the method's.", SITES),
    ] = None
    sites_from: Annotated[
        Path | None, option("Take the sites from this ranking.json (or the folder of its report).", SITES)
    ] = None
    sites_which: Annotated[
        str,
        option(
            "Of --sites-from: recommended (the choice that the report names), best (the highest score), set (the "
            "greedy set), or a kind, for all its layers.",
            SITES,
        ),
    ] = "recommended"

    def sites(self) -> tuple[str, ...]:
        """Return the sites that ``--site`` names or that a ranking chooses.

        Raises:
            InputError: Both are given, or the ranking cannot be read or has no such site.
        """
        names = tuple(name for names in self.site or () for name in names_in(names))
        if self.site and not names:
            raise InputError(
                "[[site]] names no site; expected names such as 3.mlp_out, or leave it out for all layers."
            )
        if self.sites_from is None:
            if self.sites_which != "recommended":
                raise InputError(
                    f"[[sites_which]] is {self.sites_which!r}, but no ranking is given. Add --sites-from RANKING."
                )
            return names
        if names:
            raise InputError("[[site]] and [[sites_from]] both name sites. Leave one of them out.")
        from steerscope.analysis.results import Ranking
        from steerscope.experiments.training.methods import get_method

        family = get_method(self.method).family
        if family is None:
            raise InputError(f"method {self.method!r} edits no site; leave out [[sites_from]].")
        file = self.sites_from
        ranking = Ranking.load(file / "ranking.json" if file.is_dir() else file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said below, in the command's own words
            sites = ranking.steering_config(self.sites_which, family=family).sites
        from steerscope.cli.output import say

        model = ranking.model.name
        if not ranking.stability.can_tell:
            say("the prompts of this ranking could not tell sites apart, so it recommends none; take more of them")
        say(f"sites from the ranking of {model} on {ranking.task} by {ranking.score}: {', '.join(sites)}")
        return tuple(sites)


@dataclass(frozen=True)
class _Training(Bundle):
    """By the names of ``TrainOptions``."""

    rank: Annotated[int | None, option("Rank of edits and LoRA; without it 8.", SITES)] = None
    positions: Annotated[str, option("all, prompt, completion, last, first:n or last:n.", SITES)] = "all"
    bias: EditBias = None
    scale: EditScale = "none"
    activation: Annotated[str | None, option("{values}, for nonlinear.", SITES, values=("silu", "gelu", "tanh"))] = None
    constraint: Annotated[str | None, option("{values}, for joint.", SITES, values=("none", "input", "output"))] = None
    heads: Annotated[int | None, option("Heads that lofit keeps; without it a tenth.", SITES)] = None
    sparsity: Annotated[float | None, option("Strength of lofit's penalty on scales; without it 0.001.", SITES)] = None
    start: Annotated[str, option("no-op, or published: edits start as their authors start them.", SITES)] = "no-op"
    steps: Annotated[int, option("Optimizer steps.", TRAINING)] = 120
    batch_size: StepBatch = 32
    learning_rate: Annotated[
        str | None,
        option(
            "A number, or auto: chosen on validation. Without it, the method's own.",
            TRAINING,
            "--learning-rate",
            "--lr",
        ),
    ] = None
    learning_rate_of: Annotated[
        Path | None, option("Finished run that differs in the seed alone: take over what its auto found.", TRAINING)
    ] = None
    tries: Annotated[int, option("Most learning rates that auto tries.", TRAINING)] = 7
    lr_steps: Annotated[int | None, option("Steps of auto's runs; without it as many as --steps.", TRAINING)] = None
    warmup: Annotated[float, option("Part of the steps in which the learning rate rises.", TRAINING)] = 0.1
    seed: Annotated[int, option("Seed of training data, order and start.", RUNNING)] = 0
    train_examples: Annotated[int | None, option("Training examples; without it as many as needed.", DATA)] = None
    validation_examples: Annotated[int, option("Examples that auto chooses on.", DATA)] = 256
    test_examples: Annotated[int | None, option("Most test questions; without it, all.", DATA, "--max-examples")] = None
    max_length: Annotated[int | None, option("Longest training example in tokens.", DATA)] = None
    max_new_tokens: Annotated[int | None, option("Longest generation; without it, the task's.", RUNNING)] = None
    eval_batch_size: Annotated[int, option("Prompts per batch in evaluation.", RUNNING)] = 16
    likelihoods: Annotated[bool, option("Also likelihoods of choices and the loss on test.", RESULTS)] = True
    before: Annotated[
        bool, option("Also ask the untrained model the test questions; known answers beside --out are used.", RESULTS)
    ] = True
    save_every: Annotated[
        int | None, option("Steps between checkpoints; without it a quarter of the run.", RUNNING)
    ] = None
    keep_checkpoints: Annotated[
        bool, option("Keep checkpoints when the run is complete.", RESULTS, "--keep-checkpoints")
    ] = False


def train(
    asked: Asked,
    *,
    where: _Where,
    wanted: _Training,
    out: Annotated[Path | None, option("Folder of the run; without it runs/TASK-METHOD-SEED.", RESULTS)] = None,
    json: JsonTarget = None,
    resume: Annotated[bool, option("Go on with the run in the folder.", RESULTS, "--resume")] = False,
    loading: _Loading,
    quiet: Quiet = False,
) -> None:
    """Train on a task's train part, save what was trained, and measure accuracy on its test part."""
    from steerscope.cli.output import RESUME, check_folder, check_json_target, give_json, say
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import train as train_model
    from steerscope.experiments.training.options import TrainOptions
    from steerscope.folders import Kind

    # Everything that can be refused is refused here, before a model is loaded.
    source = asked.chosen_task(loading)
    read = {"learning_rate": _learning_rate(wanted.learning_rate)}
    options = TrainOptions(method=where.method, sites=where.sites(), **(wanted.as_dict() | read), **loading.as_dict())
    options.check()
    check_json_target(json, "test_accuracy")
    folder = out or Path("runs") / f"{source.name}-{options.method}-{options.seed}"
    check_folder(folder, Kind.RUN, overwrite=resume, advice=RESUME)
    show_warnings(source)
    command = command_line()
    try:
        with stage_progress(quiet=quiet) as show:
            found = train_model(
                asked.model, source, options, folder, resume=resume, progress=show, say=say, command=command
            )
    except KeyboardInterrupt:
        if (folder / "config.json").exists():
            print(f"stopped; the same command with --resume goes on from what is in {folder}", file=sys.stderr)
        raise
    print(f"results: {folder}", file=sys.stderr)
    if not give_json(json, found.to_json(), "test_accuracy"):
        typer.echo(found.outcome)


def _learning_rate(text: str | None) -> float | str | None:
    """Read a number, or leave the word.

    Returns:
        The number, ``"auto"``, or ``None``.

    Raises:
        InputError: It is neither a number nor ``auto``.
    """
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"[[learning_rate]] is {text!r}; expected a number or 'auto'.") from None
