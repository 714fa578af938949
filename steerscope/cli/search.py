"""``steerscope search``: find the site to train at, and get an adapter trained there."""

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


def search(
    model: ModelName = DEFAULT_MODEL,
    task: TaskName = None,
    data: OwnExamples = None,
    data_dir: TaskFiles = None,
    budget: Annotated[
        float | None, typer.Option(help="Minutes of ranking and training; plain defaults take as long again.")
    ] = None,
    candidates: Annotated[int, typer.Option(help="Most sites that are trained at.")] = 24,
    start: Annotated[str, typer.Option(help="Which sites: score (half of them spread), depth or spread.")] = "score",
    family: Annotated[str, typer.Option(help="Family of the edits.")] = "linear",
    rank: Annotated[int | None, typer.Option(help="Rank of the edits; 8 unless given.")] = None,
    scale: Annotated[str, typer.Option(help="rms: divide what is read by its root mean square; or none.")] = "none",
    steps: Annotated[int, typer.Option(help="Optimizer steps of a whole run.")] = 120,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 24,
    sets: Annotated[bool, typer.Option(help="Let sets of sites compete too.")] = True,
    references: Annotated[bool, typer.Option(help="Train plain defaults for comparison.")] = True,
    max_examples: Annotated[int, typer.Option(help="Most prompts that the ranking is made from.")] = 192,
    selection_examples: Annotated[int, typer.Option(help="Most held-out prompts that choose.")] = 256,
    test_examples: Annotated[int, typer.Option(help="Most test prompts.")] = 512,
    out: Annotated[Path, typer.Option(help="Folder for runs, search.json, index.html and adapter/.")] = Path("search"),
    resume: Annotated[bool, typer.Option(help="Go on with the runs that the folder holds.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Annotated[int, typer.Option(help="Seed of the ranking and of training.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Rank the sites, train at the best ones in rounds, and keep the adapter of the one that learns most."""
    from steerscope.cli.output import RESUME, check_folder, page_beside
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import search as search_model
    from steerscope.experiments.searching import SearchOptions
    from steerscope.folders import Kind

    # Everything that can be refused is refused here, before a model is loaded.
    options = SearchOptions(
        budget=budget,
        candidates=candidates,
        start=start,
        family=family,
        rank=rank,
        scale=scale,
        steps=steps,
        batch_size=batch_size,
        sets=sets,
        references=references,
        num_ranking=max_examples,
        num_selection=selection_examples,
        num_test=test_examples,
        seed=seed,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    check_folder(out, Kind.SEARCH, overwrite=resume, advice=RESUME, also=(Kind.RANKING,))
    source = chosen_task(task, data, data_dir)
    with stage_progress(quiet=quiet) as show:
        result = search_model(model, source, options, out, progress=show, command=command_line())
    print(result, file=sys.stdout)
    print(f"adapter: {result.adapter}", file=sys.stderr)
    page_beside("write_search", result, out)
