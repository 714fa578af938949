"""A whole run: choose a learning rate, train, save, test; interrupted at any point it can go on.

What a run does is decided by its options and seed alone. A search keeps the loss of every rate as it is known, the
training itself keeps checkpoints, and whatever lies in between is repeated with the same result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from steerscope.analysis.stopwatch import StageProgress
from steerscope.errors import InputError
from steerscope.experiments.runs.folder import CONFIG, RESULTS, RunFolder, read_results
from steerscope.experiments.runs.records import RunConfig, RunResults
from steerscope.experiments.tasks import Task
from steerscope.experiments.training.data import Parts, draw_parts, run_settings
from steerscope.experiments.training.fit import require_no_older
from steerscope.experiments.training.learning_rates import read_search, require_same_subject
from steerscope.experiments.training.methods import Trains
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.training.run import CHECKPOINTS, Run
from steerscope.files import alone_in
from steerscope.folders import Kind, require_folder_for
from steerscope.models import load_model
from steerscope.models.load import LoadedModel
from steerscope.option_types import loading_of


def train(
    options: TrainOptions,
    task: Task,
    out: str | Path,
    *,
    loaded: LoadedModel | None = None,
    resume: bool = False,
    progress: StageProgress | None = None,
    say: Callable[[str], None] | None = None,
    command: str = "",
) -> RunResults:
    """Train by one method on one task and test what came of it.

    Args:
        options: What to train and how.
        task: Where examples come from.
        out: The run's folder, new or empty; with ``resume`` one that this run began.
        loaded: The model; loaded as the options say unless given.
        resume: Go on where the folder's run stopped; a complete one is read and returned.
        progress: Called with stages ``load``, ``generate_before`` and ``likelihood_before`` (the untrained model's
            answers, unless they are known), one per learning rate tried, ``scales`` (LoFiT), ``train``, ``generate``,
            ``likelihood``.
        say: Called with sentences a user should read.
        command: What the user typed, kept with the results.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: Options, data, model or folder cannot be used, or training diverged.

    Cost: the method's tries and its training (see :func:`~steerscope.experiments.training.fit.fit`), and the test.
    """
    options.check()
    place, show = Path(out), progress or (lambda stage, done, total: None)
    tell = say or (lambda sentence: None)
    require_folder_for(place, Kind.RUN)
    if resume and not (place / RESULTS).exists():
        require_no_older(place / CHECKPOINTS)
    parts = draw_parts(task, options)
    searched = read_search(options, parts)
    from_files = loaded is None
    if loaded is None:
        show("load", 0, 1)
        loaded = load_model(options.model, **loading_of(options))
        show("load", 1, 1)
    config = run_config(options, loaded, parts)
    if searched:
        require_same_subject(searched, config, str(options.learning_rate_of))
    if resume and (place / CONFIG).exists():
        folder = RunFolder.reopen(place, config)
        if folder.note:
            tell(folder.note)
        if folder.is_finished:
            return read_results(place)
    else:
        folder = RunFolder.create(place, config)
    run = Run(loaded, options, parts, folder.path, show, tell, searched, from_files)
    with alone_in(folder.path, "train"):
        try:
            results = run.whole(task.form, config, command, folder)
        except InputError:
            if not run.has_begun:
                shutil.rmtree(run.checkpoints, ignore_errors=True)
                folder.withdraw()
            raise
    if not options.keep_checkpoints:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return results


def run_config(options: TrainOptions, loaded: LoadedModel, parts: Parts) -> RunConfig:
    """Return what a run is, as its folder keeps it.

    Args:
        options: Of the run.
        loaded: The model.
        parts: The data, whose hashes are among the settings.

    Returns:
        Model, task, method, sites, rank, seed and settings.

    Raises:
        InputError: The model lacks a site.
    """
    sites: tuple[str, ...] = ()
    if options.of.trains is Trains.LOFIT and not options.sites:
        sites = ("attn_heads",)  # training decides which
    elif options.of.edits:
        sites = tuple(map(str, options.steering_config().resolve(loaded.site_map)))
    return RunConfig(
        task=options.task,
        method=options.method,
        sites=sites,
        rank=options.true_rank,
        seed=options.seed,
        model=loaded.identity,
        settings=run_settings(options, parts),
    )
