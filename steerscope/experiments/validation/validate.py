"""Does the ranking predict training? Rank, train at sites spread over the model, compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.scores import DEFAULT_SCORE
from steerscope.analysis.stopwatch import StageProgress, training_progress
from steerscope.experiments.agreement.agreements import agreements
from steerscope.experiments.agreement.attainable import attainable
from steerscope.experiments.agreement.depth_and_kind import depth_and_kind, known_studies
from steerscope.experiments.engine.candidate import Candidate, Outcome
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.engine.sweep import Sweep
from steerscope.experiments.groundwork.candidates import edit_at, num_params, sites_of, weights_of
from steerscope.experiments.groundwork.kept_ranking import kept_ranking
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import DataSplits, majority_rate
from steerscope.experiments.validation.options import ValidateOptions, choose_sites
from steerscope.experiments.validation.result import (
    TrainedSite,
    Untrained,
    Validation,
    ValidationCost,
    ValidationSettings,
)
from steerscope.folders import Kind, require_folder_for
from steerscope.models.load import LoadedModel, require_loaded
from steerscope.option_types import options_or_default
from steerscope.records import copied
from steerscope.sites import Site, parse_site

PLAIN_BASELINES = (
    "depth",
    "depth_and_kind",
    "middle_layer",
    "last_layer",
    "gradient_norm",
    "activation_norm",
    "random",
)


def validate_ranking(
    loaded: LoadedModel,
    splits: DataSplits,
    options: ValidateOptions,
    folder: Path,
    *,
    progress: StageProgress | None = None,
    command: str = "",
) -> tuple[Ranking, Validation]:
    """Rank the sites, train at some of them and compare.

    Args:
        loaded: The model.
        splits: Where examples come from.
        options: Sites, seeds, length of training.
        folder: Where runs (``runs/``) and the ranking (``ranking.json``) are kept; what is there already and was
            made with the same options is used again, so an interrupted validation goes on where it stopped.
        progress: Called as work goes on.
        command: What the user typed, for the record.

    Returns:
        The ranking, with this validation as its evidence, and the validation.

    Raises:
        InputError: Bad options, too few examples, or a folder whose validation was begun with other data or options.

    Cost: one ranking, then three training runs per site and one more per further seed, each through the blocks
    from the site up.
    """
    require_loaded(loaded)
    options = options_or_default(options, ValidateOptions)
    options.check()
    require_folder_for(folder, Kind.VALIDATION, also=(Kind.RANKING,))
    chosen = choose_sites(loaded.site_map, options.sites)
    data = SplitData(loaded, splits, options.schedule, options.num_selection, options.num_test)
    data.check(options.all_seeds)
    wanted = RankOptions(max_examples=options.num_ranking, seed=options.seed, rank=options.rank)
    ranking = kept_ranking(loaded, splits, folder / "ranking.json", wanted, progress)
    sweep = Sweep(loaded, data, options.schedule, RunStore(folder / "runs"), {}, progress=training_progress(progress))
    before = sweep.untrained()
    candidates = [edit_at((site,), options.rank) for site in chosen]
    extra = _references(loaded, ranking, options.rank) if options.references else []
    # Sites first: the table is about them. References are lines to read it by: one seed is enough for them.
    outcomes = sweep.run(candidates, options.all_seeds) + (sweep.run(extra, options.all_seeds[:1]) if extra else [])
    by_site = {(s.layer, s.kind): s for s in ranking.sites if s.family == "linear"}
    sites = tuple(
        _trained(outcome, num_params(loaded, one, options.rank), by_site[site.layer, site.kind.value].scores)
        for site, one, outcome in zip(chosen, candidates, outcomes, strict=False)
    )
    references = tuple(
        _trained(outcome, num_params(loaded, one, options.rank))
        for one, outcome in zip(extra, outcomes[len(chosen) :], strict=True)
    )
    asked = splits.test(options.num_test)
    result = Validation(
        model=loaded.identity,
        task=splits.name,
        options=copied(ValidationSettings, options),
        versions=ranking.versions,
        before=Untrained(loss=before.loss, accuracy=before.accuracy, majority=majority_rate(asked), n_test=len(asked)),
        score=DEFAULT_SCORE,
        sites=sites,
        references=references,
        agreements={},
        baselines=(),
        attainable=None,
        cost=_cost(loaded, ranking, chosen, outcomes[: len(chosen)], options),
        command=command,
        data={
            "ranking": str(ranking.settings.data),
            "train": data.content_hash("train", options.seed),
            "selection": data.content_hash("selection"),
            "test": data.content_hash("test"),
        },
    )
    result = compared(result)
    return replace(ranking, evidence=result.evidence()), result


def compared(result: Validation) -> Validation:
    """Return the validation with its comparison computed (again) from sites and losses."""
    sites = [sites_of(site.method)[0] for site in result.sites]
    layers = np.array([site.layer for site in sites])
    losses = result.losses()
    names = list(result.sites[0].scores)
    scores: dict[str, NDArray[np.float64]] = {
        name: np.array([site.scores[name] for site in result.sites]) for name in names
    }
    others = {name: constants for name, constants in known_studies().items() if name != result.study}
    joint = depth_and_kind(sites, result.model.layers, others)
    if joint is not None:
        scores["depth_and_kind"] = joint
    baselines = tuple(name for name in PLAIN_BASELINES if name in scores)
    seed = result.options.seed
    found = agreements(scores, losses, layers, before=result.before.loss, baselines=baselines, seed=seed)
    return replace(
        result,
        agreements=found,
        baselines=baselines,
        attainable=attainable(losses, layers, seed=seed),
    )


def _references(loaded: LoadedModel, ranking: Ranking, rank: int) -> list[Candidate]:
    best = tuple(parse_site(f"{step.layer}.{step.kind}") for step in ranking.greedy)
    sets = [edit_at(sorted(best, key=lambda site: site.layer), rank)] if len(best) > 1 else []
    return [*sets, weights_of(loaded, "lora", rank), weights_of(loaded, "sft", rank)]


def _trained(outcome: Outcome, n_params: int, scores: dict[str, float] | None = None) -> TrainedSite:
    found = outcome.as_dict()
    found["losses"] = tuple(found["losses"])
    return TrainedSite(**found, n_params=n_params, scores=dict(scores or {}))


def _cost(
    loaded: LoadedModel,
    ranking: Ranking,
    chosen: tuple[Site, ...],
    outcomes: list[Outcome],
    options: ValidateOptions,
) -> ValidationCost:
    """Compare the ranking's time with the sweep that it replaces: every layer and kind, the search, one seed.

    Returns:
        Seconds of the ranking, of the training and of the sweep it replaces, and the ratio of the first to the last.
    """
    # Runs through fewer blocks are faster; the mean over sites spread over depth stands for the mean over all.
    per_run = [o.seconds / (len(o.tried) + options.seeds - 1) for o in outcomes]
    per_site = float(np.mean([run * max(3, len(o.tried)) for run, o in zip(per_run, outcomes, strict=True)]))
    count = len(loaded.site_map.sites())
    spent = sum(ranking.timing.values())
    return ValidationCost(
        ranking=spent,
        training=sum(o.seconds for o in outcomes),
        sweep=per_site * count,
        ratio=spent / max(per_site * count, 1e-9),
    )
