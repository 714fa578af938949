"""What the commands do, as functions: train, evaluate, validate, sweep, search and verify.

The command line calls these very functions. They have one shape: the model, the task, options, and where results go. A
model is given in memory, or by its name; it is then loaded as the options say (device, data type, revision), after all
that can be refused without it has been. A model in memory is afterwards as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from steerscope import models
from steerscope.analysis.stopwatch import StageProgress
from steerscope.errors import InputError
from steerscope.experiments.evaluation.adapters import read_adapter
from steerscope.experiments.evaluation.command import EvaluateOptions, evaluate_model
from steerscope.experiments.groundwork.splits import DataSplits, splits_of_task
from steerscope.experiments.runs.evaluation import Evaluation
from steerscope.experiments.runs.records import RunResults
from steerscope.experiments.searching import SearchOptions, SearchResult, search_sites
from steerscope.experiments.site_tables import SiteTable
from steerscope.experiments.sweeping import SweepOptions, sweep_sites
from steerscope.experiments.tasks import FileTask, Task, at_most, get_task
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.training.train import train as train_on
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.result import Validation
from steerscope.experiments.validation.validate import validate_ranking
from steerscope.experiments.verification import run as verification
from steerscope.experiments.verification.results import Verification
from steerscope.experiments.verification.run import Loader, VerifyOptions
from steerscope.folders import Kind, require_folder_for
from steerscope.models.load import LoadedModel
from steerscope.option_types import LOADING, loading_of, options_or_default
from steerscope.steering.model import steered_by

AnyModel = LoadedModel | str | Path
AnyTask = Task | str


def train(
    model: AnyModel,
    task: AnyTask,
    options: TrainOptions | None = None,
    out: str | Path = "run",
    *,
    resume: bool = False,
    progress: StageProgress | None = None,
    say: Callable[[str], None] | None = None,
    command: str = "",
) -> RunResults:
    """Train by one method on a task's train part, save what was trained, and test it on its test part.

    Args:
        model: A loaded model, or the name of one.
        task: A task, or the name of one.
        options: The method, its sites and its schedule; a linear edit after every block unless given.
        out: The run's folder, new or empty; with ``resume`` one that this run began. What was trained is in
            ``out/adapter``.
        resume: Go on where the folder's run stopped; a complete one is read and returned.
        progress: Called with the stage's name, steps done and steps in all.
        say: Called with sentences a user should read.
        command: What the user typed, kept with the results.

    Returns:
        What ``results.json`` holds: the test accuracy with its interval, and what it took.

    Raises:
        InputError: Options, data, model or folder cannot be used, or training diverged.

    Cost: training, once per learning rate that ``learning_rate="auto"`` tries, and the generation of all test answers.
    """
    options = options_or_default(options, TrainOptions)
    loaded = _in_memory(model, options)
    if loaded is None:
        options = replace(options, model=_one(options.model, TrainOptions.model, str(model), "[[model]]"))
    else:
        options = replace(options, device=str(loaded.device), dtype=loaded.identity.dtype)
    source = _task(task)
    options = replace(options, task=_one(options.task, "", source.name, "[[task]]"))
    return train_on(
        options, source, out, loaded=loaded, resume=resume, progress=progress, say=say, command=command
    )  # fmt: skip


def evaluate(
    model: AnyModel,
    task: AnyTask,
    options: EvaluateOptions | None = None,
    *,
    adapter: str | Path | None = None,
    out: str | Path | None = None,
    progress: StageProgress | None = None,
    command: str = "",
) -> Evaluation:
    """Measure how often a model, with or without an adapter, is right on a task.

    Args:
        model: A loaded model, or the name of one.
        task: A task, or the name of one.
        options: Which part of the task, how many questions, and how they are asked.
        adapter: Folder of a saved adapter (steering, PEFT, changed weights), or of the run that trained it.
        out: A new folder for results and generations, or ``None`` to keep none.
        progress: Called with the stage's name, steps done and steps in all.
        command: What the user typed, kept with the results.

    Returns:
        The accuracy with its interval and, where they were asked for, comparisons of likelihoods.

    Raises:
        InputError: Options, data, model, adapter or folder cannot be used.

    Cost: generation of all answers; likelihoods add a forward pass per choice.
    """
    options = options_or_default(options, EvaluateOptions)
    options.check()
    loaded = _in_memory(model, options)
    source = _task(task)
    saved = None if adapter is None else read_adapter(adapter)
    examples = at_most(source, options.split, options.max_examples, options.seed)  # type: ignore[arg-type]  # checked
    place = None if out is None else Path(out)
    load = partial(_load, model, options) if loaded is None else lambda: loaded
    return evaluate_model(
        load, source.form, examples, saved, options, place, keeps=loaded is not None, progress=progress, command=command
    )


def validate(
    model: AnyModel,
    task: AnyTask,
    options: ValidateOptions | None = None,
    out: str | Path = "validation",
    *,
    progress: StageProgress | None = None,
    command: str = "",
) -> Validation:
    """Rank a model's sites, train at some of them, and compare: did the ranking foresee the outcome?

    Args:
        model: A loaded model, or the name of one.
        task: A task, or the name of one.
        options: Sites, seeds, length of training.
        out: Folder for ``validation.json``, ``ranking.json`` (with the validation as its evidence) and the runs. What
            it holds already and was made with the same options is used again: an interrupted validation goes on.
        progress: Called with the stage's name, steps done and steps in all.
        command: What the user typed, kept with the results.

    Returns:
        The ranking's agreement with the trained losses, beside that of baselines.

    Raises:
        InputError: Options, data, model or folder cannot be used.

    Cost: one ranking, then three training runs per site and one more per further seed, each through the blocks from the
    site up.
    """
    options = options_or_default(options, ValidateOptions)
    options.check()
    work, place = _prepared(model, task, options, out, Kind.VALIDATION, progress), Path(out)
    ranking, result = validate_ranking(work.loaded, work.splits, options, place, progress=work.show, command=command)
    ranking.save(place / "ranking.json")
    result.save(place / "validation.json")
    return result


def sweep(
    model: AnyModel,
    task: AnyTask,
    options: SweepOptions | None = None,
    out: str | Path = "sweep",
    *,
    progress: StageProgress | None = None,
    command: str = "",
) -> SiteTable:
    """Train an edit at each of many sites, one site per run, and keep what came out as a table.

    Args:
        model: A loaded model, or the name of one.
        task: A task, or the name of one.
        options: Sites, edit, length of training, budget.
        out: Folder for runs and ``table.json``; a sweep in it with the same options is resumed.
        progress: Called with the stage's name, steps done and steps in all.
        command: What the user typed, kept with the table.

    Returns:
        The table of sites, as it was written to ``out``.

    Raises:
        InputError: Options, data, model or folder cannot be used, or the budget was over before a run was tested.

    Cost: see :func:`~steerscope.experiments.sweeping.sweep_sites.sweep_sites`.
    """
    options = options_or_default(options, SweepOptions)
    work = _prepared(model, task, options, out, Kind.SWEEP, progress)
    return sweep_sites(work.loaded, work.splits, options, out, progress=work.show, command=command, load=work.load)


def search(
    model: AnyModel,
    task: AnyTask,
    options: SearchOptions | None = None,
    out: str | Path = "search",
    *,
    progress: StageProgress | None = None,
    command: str = "",
) -> SearchResult:
    """Find the site, or set of sites, at which training gives most, and keep an adapter trained there.

    Args:
        model: A loaded model, or the name of one.
        task: A task, or the name of one.
        options: Budget, candidates, edit.
        out: Folder for runs, ``search.json`` and ``adapter/``; a search in it is resumed.
        progress: Called with the stage's name, steps done and steps in all.
        command: What the user typed, kept with the result.

    Returns:
        The best site or set with its test result, and everything that was tried.

    Raises:
        InputError: Options, data, model or folder cannot be used, or the budget was over before runs were compared.

    Cost: see :func:`~steerscope.experiments.searching.search_sites.search_sites`.
    """
    options = options_or_default(options, SearchOptions)
    work = _prepared(model, task, options, out, Kind.SEARCH, progress)
    return search_sites(work.loaded, work.splits, options, out, progress=work.show, command=command, load=work.load)


@dataclass(frozen=True)
class _Prepared:
    """A model that is loaded after all that can be refused without it has been."""

    loaded: LoadedModel
    splits: DataSplits
    show: StageProgress
    # How another machine loads it by its name; None for a model in memory.
    load: Callable[[], LoadedModel] | None


def _prepared(
    model: AnyModel,
    task: AnyTask,
    options: ValidateOptions | SweepOptions | SearchOptions,
    out: str | Path,
    kind: Kind,
    progress: StageProgress | None,
) -> _Prepared:
    loaded, show = _in_memory(model, options), progress or _silent
    require_folder_for(out, kind, also=(Kind.RANKING,))
    splits = splits_of_task(_task(task))
    splits.selection(options.num_selection)
    splits.test(options.num_test)
    load = None
    if loaded is None:
        show("load", 0, 1)
        # A process of a cluster sees the GPUs that it was given, and counts them from 0.
        its_own = replace(options, device="cuda") if options.device.startswith("cuda") else options
        load = partial(_load, model, its_own)
        loaded = _load(model, options)
        show("load", 1, 1)
    return _Prepared(loaded, splits, show, load)


def verify(
    model: str | Path | Loader | None = None,
    options: VerifyOptions | None = None,
    *,
    only: str | Iterable[str] | None = None,
    progress: StageProgress | None = None,
) -> Verification:
    """Try the theory's propositions on random blocks or on a model, and measure its quantities on the model.

    Args:
        model: The name of a model, or a function that returns the loaded model in a data type (``"float64"``, and
            ``"float32"`` for the measurements); without one, small random blocks of three layouts.
        options: Sizes of the measurements.
        only: Names of propositions (``"P7,P12"`` or ``["P7", "P12"]``); all unless given.
        progress: Called with the stage's name, steps done and steps in all.

    Returns:
        The verdict on each proposition and, on a model, the measurements.

    Raises:
        InputError: An unknown proposition, or options or the model cannot be used.

    Cost: half a minute on random blocks; five minutes on two cores for a model of 135 million parameters.
    """
    options = options_or_default(options, VerifyOptions)
    options.check()
    chosen = verification.catalogue.propositions(only)
    if model is None:
        return verification.verify_random(chosen, options, progress)
    if isinstance(model, LoadedModel):
        raise InputError(
            f"got the loaded model {model.identity.name!r}, which has one data type; expected a name, or a function "
            "that returns it in a data type: verify(lambda dtype: load_model(NAME, dtype=dtype))."
        )
    load = model if callable(model) else partial(_load, model, options)
    return verification.verify_model(load, chosen, options, progress)


def _task(task: AnyTask) -> Task:
    if isinstance(task, str):
        return get_task(task)
    if not hasattr(task, "split") or not hasattr(task, "form"):
        raise InputError(
            f"task is a {type(task).__name__}; expected the name of a task, get_task(name), or "
            f"{FileTask.__name__}.read(path) for examples of your own."
        )
    return task


def _in_memory(model: AnyModel, options: Any) -> LoadedModel | None:
    """Return a model that is loaded already, or ``None`` for a name.

    Raises:
        InputError: It is neither, it is being steered, or options say how to load what is loaded.
    """
    if isinstance(model, str | Path):
        return None
    if not isinstance(model, LoadedModel):
        raise InputError(
            f"model is a {type(model).__name__}; expected a name, load_model(name), or wrap_model(model, tokenizer)."
        )
    for field in fields(options):
        if field.name in ("model", *LOADING) and getattr(options, field.name) != field.default:
            raise InputError(
                f"[[{field.name}]] is {getattr(options, field.name)!r}, and the model is loaded already. Leave it out, "
                "or give the model's name."
            )
    if steered_by(model.model) is not None:
        raise InputError(
            f"the model {model.identity.name!r} is being steered by an adapter. Call unload() of the adapter first; a "
            "saved one is given by its folder."
        )
    return model


def _load(model: AnyModel, options: Any, dtype: str | None = None) -> LoadedModel:
    """Load a model as the options say, or in another data type."""
    return models.load_model(str(model), **(loading_of(options) | ({} if dtype is None else {"dtype": dtype})))


def _one(chosen: str, default: str, given: str, what: str) -> str:
    """Return what is given, unless the options name another one."""
    if chosen not in (default, given):
        raise InputError(f"{what} is {chosen!r} in the options, and {given!r} is given. Leave it out of the options.")
    return given


def _silent(stage: str, done: int, total: int) -> None:
    pass
