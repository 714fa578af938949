"""``steerscope train``: train by one method on a task, save the adapter, and test it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from steerscope.cli.options import (
    DEFAULT_MODEL,
    Device,
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
from steerscope.errors import InputError


def train(
    model: ModelName = DEFAULT_MODEL,
    task: TaskName = None,
    data: OwnExamples = None,
    data_dir: TaskFiles = None,
    method: Annotated[
        str,
        typer.Option(
            help="post-block, post-mlp, attn-out, mlp-in, vector, nonlinear, loreft, direft, noreft, lofit, lora, sft, "
            "bitfit, joint or none."
        ),
    ] = "post-block",
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Sites or kinds to edit, repeatable or comma-separated; without it all layers of the method's."
        ),
    ] = None,
    sites_from: Annotated[
        Path | None, typer.Option(help="Take the sites from this ranking.json (or the folder of its report).")
    ] = None,
    sites_which: Annotated[
        str, typer.Option(help="Of --sites-from: best, set (the greedy set), or a kind, for all its layers.")
    ] = "best",
    rank: Annotated[int | None, typer.Option(help="Rank of edits and LoRA; without it 8.")] = None,
    positions: Annotated[str, typer.Option(help="all, prompt, completion, last, first:n or last:n.")] = "all",
    bias: Annotated[bool | None, typer.Option(help="A vector on what linear and nonlinear edits write; on.")] = None,
    scale: Annotated[bool, typer.Option(help="Divide what edits read by its root mean square.")] = False,
    activation: Annotated[str | None, typer.Option(help="silu, gelu or tanh, for nonlinear.")] = None,
    constraint: Annotated[str | None, typer.Option(help="none, input or output, for joint.")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads that lofit keeps; without it a tenth.")] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Strength of lofit's penalty on scales; without it 0.001.")
    ] = None,
    start: Annotated[str, typer.Option(help="no-op, or published: edits start as their authors start them.")] = "no-op",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; without it runs/TASK-METHOD-SEED.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 120,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 32,
    learning_rate: Annotated[
        str | None, typer.Option(help="A number, or auto: chosen on validation. Without it, the method's own.")
    ] = None,
    learning_rate_of: Annotated[
        Path | None,
        typer.Option(help="Finished run that differs in the seed alone: take over what its auto found."),
    ] = None,
    tries: Annotated[int, typer.Option(help="Most learning rates that auto tries.")] = 7,
    lr_steps: Annotated[int | None, typer.Option(help="Steps of auto's runs; without it as many as --steps.")] = None,
    warmup: Annotated[float, typer.Option(help="Part of the steps in which the learning rate rises.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of training data, order and start.")] = 0,
    train_examples: Annotated[int | None, typer.Option(help="Training examples; without it as many as needed.")] = None,
    validation_examples: Annotated[int, typer.Option(help="Examples that auto chooses on.")] = 256,
    max_examples: Annotated[int | None, typer.Option(help="Test questions; without it, all.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest training example in tokens.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest generation; without it, the task's.")] = None,
    eval_batch_size: Annotated[int, typer.Option(help="Prompts per batch in evaluation.")] = 16,
    likelihoods: Annotated[bool, typer.Option(help="Also likelihoods of choices and the loss on test.")] = True,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; without it a quarter of the run.")
    ] = None,
    keep_checkpoints: Annotated[bool, typer.Option(help="Keep them when the run is complete.")] = False,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the model: float32, bfloat16 or float64; adapters are float32.")] = (
        "float32"
    ),
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Train on a task's train part, save what was trained, and measure accuracy on its test part."""
    from steerscope.cli.output import RESUME, check_folder
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import train as train_model
    from steerscope.experiments.training.options import TrainOptions
    from steerscope.folders import Kind

    # Everything that can be refused is refused here, before a model is loaded.
    source = chosen_task(task, data, data_dir)
    options = TrainOptions(
        method=method,
        sites=_sites(site, sites_from, sites_which, method),
        rank=rank,
        positions=positions,
        bias=bias,
        scale="rms" if scale else "none",
        activation=activation,
        constraint=constraint,
        heads=heads,
        sparsity=sparsity,
        start=start,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        steps=steps,
        batch_size=batch_size,
        learning_rate=_learning_rate(learning_rate),
        learning_rate_of=None if learning_rate_of is None else str(learning_rate_of),
        tries=tries,
        lr_steps=lr_steps,
        warmup=warmup,
        seed=seed,
        train_examples=train_examples,
        validation_examples=validation_examples,
        test_examples=max_examples,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        eval_batch_size=eval_batch_size,
        likelihoods=likelihoods,
        save_every=save_every,
        keep_checkpoints=keep_checkpoints,
    )
    options.check()
    folder = out or Path("runs") / f"{source.name}-{method}-{seed}"
    check_folder(folder, Kind.RUN, overwrite=resume, advice=RESUME)
    show_warnings(source)
    command = command_line()
    try:
        with stage_progress(quiet=quiet) as show:
            found = train_model(model, source, options, folder, resume=resume, progress=show, say=_say, command=command)
    except KeyboardInterrupt:
        if (folder / "config.json").exists():
            print(f"stopped; the same command with --resume goes on from what is in {folder}", file=sys.stderr)
        raise
    print(f"results: {folder}", file=sys.stderr)
    typer.echo(found.line)


def _say(sentence: str) -> None:
    print(f"  {as_typed(sentence)}.", file=sys.stderr, flush=True)


def _sites(named: list[str] | None, ranking_file: Path | None, which: str, method: str) -> tuple[str, ...]:
    """Return the sites that ``--site`` names or that a ranking chooses.

    Raises:
        InputError: Both are given, or the ranking cannot be read or has no such site.
    """
    names = tuple(name.strip() for names in named or () for name in names.split(",") if name.strip())
    if named and not names:
        raise InputError("[[site]] names no site; expected names such as 3.mlp_out, or leave it out for all layers.")
    if ranking_file is None:
        if which != "best":
            raise InputError(f"[[sites_which]] is {which!r}, but no ranking is given. Add --sites-from RANKING.")
        return names
    if names:
        raise InputError("[[site]] and [[sites_from]] both name sites. Leave one of them out.")
    from steerscope.analysis.results import Ranking
    from steerscope.experiments.training.methods import get_method

    family = get_method(method).family
    if family is None:
        raise InputError(f"method {method!r} edits no site; leave out [[sites_from]].")
    ranking = Ranking.load(ranking_file / "ranking.json" if ranking_file.is_dir() else ranking_file)
    sites = ranking.steering_config(which, family=family).sites
    model = ranking.model.get("name")
    _say(f"sites from the ranking of {model} on {ranking.task} by {ranking.score}: {', '.join(sites)}")
    return tuple(sites)


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
