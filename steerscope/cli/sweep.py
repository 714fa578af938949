"""``steerscope sweep``: train an edit at every one of many sites, and keep what came out as a table."""

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
)
from steerscope.errors import InputError


def sweep(
    model: ModelName = DEFAULT_MODEL,
    task: TaskName = None,
    data: OwnExamples = None,
    data_dir: TaskFiles = None,
    sites: Annotated[
        str, typer.Option(help="all; a number (all kinds of evenly spread layers); or names: 3.mlp_out,12.resid_post")
    ] = "48",
    family: Annotated[str, typer.Option(help="Family of the edits.")] = "linear",
    rank: Annotated[int | None, typer.Option(help="Rank of the edits; 8 unless given.")] = None,
    scale: Annotated[str, typer.Option(help="rms: divide what is read by its root mean square; or none.")] = "none",
    rates: Annotated[
        str, typer.Option(help="Learning rates to choose among, 1e-3,3e-3,1e-2; without it, searched on a grid.")
    ] = "",
    tune_layers: Annotated[
        int | None,
        typer.Option(help="Choose rates at so many layers per kind; others take the nearest one."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Training seeds per site.")] = 3,
    steps: Annotated[int, typer.Option(help="Optimizer steps of every run.")] = 80,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 24,
    longer: Annotated[int, typer.Option(help="Sites that are trained for twice as many steps too.")] = 12,
    selection_examples: Annotated[int, typer.Option(help="Most held-out prompts that choose learning rates.")] = 256,
    test_examples: Annotated[int, typer.Option(help="Most test prompts.")] = 512,
    scores: Annotated[bool, typer.Option(help="Rank all sites at the end, and keep their scores in the table.")] = True,
    budget: Annotated[float | None, typer.Option(help="Minutes; what is finished then is kept, and usable.")] = None,
    pack_size: Annotated[int | None, typer.Option(help="Most runs trained together; without it, to fit.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, table.json and index.html.")] = Path("sweep"),
    resume: Annotated[bool, typer.Option(help="Go on with the runs that the folder holds.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Annotated[int, typer.Option(help="The first training seed.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train one edit at each of many sites, several at a time, and keep the outcomes as a table."""
    from steerscope.cli.output import RESUME, check_folder, page_beside
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import sweep as sweep_model
    from steerscope.experiments.sweeping import SweepOptions
    from steerscope.experiments.sweeping.sweep_sites import TABLE
    from steerscope.folders import Kind

    # Everything that can be refused is refused here, before a model is loaded.
    options = SweepOptions(
        sites=_sites(sites),
        family=family,
        rank=rank,
        scale=scale,
        rates=_rates(rates),
        tune_layers=tune_layers,
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        longer=longer,
        num_selection=selection_examples,
        num_test=test_examples,
        scores=scores,
        budget=budget,
        pack_size=pack_size,
        seed=seed,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    check_folder(out, Kind.SWEEP, overwrite=resume, advice=RESUME, also=(Kind.RANKING,))
    source = chosen_task(task, data, data_dir)
    with stage_progress(quiet=quiet) as show:
        table = sweep_model(model, source, options, out, progress=show, command=command_line())
    print(table, file=sys.stdout)
    speed = table.cost["operations"] / max(table.cost["seconds"], 1e-9)
    print(
        f"{table.cost['runs']:.0f} runs, {speed / 1e9:,.0f} GFLOP/s in training; table: {out / TABLE}", file=sys.stderr
    )
    page_beside("write_site_table", table, out)


def _sites(text: str) -> int | str | tuple[str, ...]:
    """Read ``all``, a number, or names.

    Returns:
        What ``SweepOptions.sites`` takes.
    """
    from steerscope.experiments.sweeping.options import ALL
    from steerscope.sites import parse_site

    if text.strip() == ALL or text.strip().isdecimal():
        return ALL if text.strip() == ALL else int(text)
    return tuple(str(parse_site(name.strip())) for name in text.split(",") if name.strip())


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(",") if one.strip())
    except ValueError:
        raise InputError(f"[[rates]] is {text!r}; expected numbers such as 1e-3,3e-3,1e-2.") from None
