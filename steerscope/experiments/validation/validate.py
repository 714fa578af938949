"""Does the ranking predict training? Rank, train at sites spread over the model, compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerscope.analysis.provenance import RECIPE, content_hash, model_key
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.scores import DEFAULT_SCORE, Needs, ranking_scores
from steerscope.errors import InputError
from steerscope.experiments.engine.candidate import Candidate, Outcome
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.engine.sweep import Sweep
from steerscope.experiments.validation.agreement import agreements, ceiling
from steerscope.experiments.validation.data import DataSplits, majority_rate
from steerscope.experiments.validation.depth_and_kind import depth_and_kind, known_studies
from steerscope.experiments.validation.options import ValidateOptions, choose_sites
from steerscope.experiments.validation.result import TrainedSite, Validation
from steerscope.experiments.validation.training import SplitData, edit_at, sites_of, weights_of
from steerscope.files import told
from steerscope.folders import Kind, require_folder_for
from steerscope.models.load import LoadedModel, require_loaded
from steerscope.option_types import options_or_default
from steerscope.sites import Site, parse_site
from steerscope.steering.build import build_edits

PLAIN_BASELINES = (
    "depth",
    "depth_and_kind",
    "middle_layer",
    "last_layer",
    "gradient_norm",
    "activation_norm",
    "random",
)

# Called with the stage, steps done and steps in all.
Progress = Callable[[str, int, int], None]


def validate_ranking(
    loaded: LoadedModel,
    splits: DataSplits,
    options: ValidateOptions,
    folder: Path,
    *,
    progress: Progress | None = None,
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

    def tell(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"train: {what}", done, total)

    data = SplitData(loaded, splits, options.schedule, options.num_selection, options.num_test)
    data.check(options.all_seeds)
    ranking = _ranked(loaded, splits, options, folder / "ranking.json", progress)
    sweep = Sweep(loaded, data, options.schedule, RunStore(folder / "runs"), {}, progress=tell)
    before = sweep.untrained()
    candidates = [edit_at((site,), options.rank) for site in chosen]
    extra = _references(loaded, ranking, options.rank) if options.references else []
    # Sites first: the table is about them. References are lines to read it by: one seed is enough for them.
    outcomes = sweep.run(candidates, options.all_seeds) + (sweep.run(extra, options.all_seeds[:1]) if extra else [])
    by_site = {(s.layer, s.kind): s for s in ranking.sites if s.family == "linear"}
    sites = tuple(
        _trained(outcome, _num_params(loaded, one, options.rank), by_site[site.layer, site.kind.value].scores)
        for site, one, outcome in zip(chosen, candidates, outcomes, strict=False)
    )
    references = tuple(
        _trained(outcome, _num_params(loaded, one, options.rank))
        for one, outcome in zip(extra, outcomes[len(chosen) :], strict=True)
    )
    asked = splits.test(options.num_test)
    result = Validation(
        model=loaded.identity.as_dict(),
        task=splits.name,
        options=options.as_dict(),
        versions=ranking.versions,
        before={
            "loss": before.loss,
            "accuracy": before.accuracy,
            "majority": majority_rate(asked),
            "n_test": len(asked),
        },
        score=DEFAULT_SCORE,
        sites=sites,
        references=references,
        agreements={},
        baselines=(),
        ceiling={},
        cost=_cost(loaded, ranking, chosen, outcomes[: len(chosen)], options),
        command=command,
        data={
            "ranking": str(ranking.settings["data"]),
            "train": data.content_hash("train", options.seed),
            "selection": data.content_hash("selection"),
            "test": data.content_hash("test"),
        },
    )
    result = compared(result)
    return replace(ranking, evidence=evidence_of(result)), result


def compared(result: Validation) -> Validation:
    """Return the validation with its comparison computed (again) from sites and losses."""
    sites = [sites_of(site.method)[0] for site in result.sites]
    depth = np.array([float(site.layer) for site in sites])
    losses = result.losses()
    names = list(result.sites[0].scores)
    scores: dict[str, NDArray[np.float64]] = {
        name: np.array([site.scores[name] for site in result.sites]) for name in names
    }
    others = {name: constants for name, constants in known_studies().items() if name != result.study}
    joint = depth_and_kind(sites, int(result.model["layers"]), others)
    if joint is not None:
        scores["depth_and_kind"] = joint
    baselines = tuple(name for name in PLAIN_BASELINES if name in scores)
    seed = int(result.options["seed"])
    found = agreements(scores, losses, depth, before=result.before["loss"], baselines=baselines, seed=seed)
    limit = asdict(ceiling(losses, depth, seed=seed))
    return replace(
        result,
        agreements={name: one.as_dict() for name, one in found.items()},
        baselines=baselines,
        ceiling={k: None if isinstance(v, float) and math.isnan(v) else v for k, v in limit.items()},
    )


def evidence_of(result: Validation) -> dict[str, Any]:
    """Return what a report says about the default score: a summary, the numbers and the points of the figure."""
    found = result.agreements[result.score]
    limit = result.ceiling.get("spearman")
    against = f"; two training seeds agree at {limit:.2f}" if limit is not None else ""
    seeds = int(result.options["seeds"])
    summary = (
        f"Validated by training at {len(result.sites)} sites of this model on {result.task} ({seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}, {result.options['steps']} steps): Spearman correlation of the score "
        f"with trained held-out loss {found['spearman']:.2f} ({found['low']:.2f} to {found['high']:.2f}), given depth "
        f"{found['partial']:.2f}{against}."
    )
    points = [
        {
            "site": site.method,
            "score": site.scores[result.score],
            "loss": site.mean_loss if math.isfinite(site.mean_loss) else None,
            "low": min((v for v in site.losses if v is not None), default=None),
            "high": max((v for v in site.losses if v is not None), default=None),
        }
        for site in result.sites
    ]
    lines = [{"name": one.method, "loss": one.mean_loss} for one in result.references if math.isfinite(one.mean_loss)]
    return {
        "summary": summary,
        "task": result.task,
        "score": result.score,
        "n_sites": len(result.sites),
        "n_seeds": seeds,
        "spearman": found["spearman"],
        "low": found["low"],
        "high": found["high"],
        "partial": found["partial"],
        "ceiling": limit,
        "agreements": sorted(
            ({**one, "is_baseline": name in result.baselines} for name, one in result.agreements.items()),
            key=lambda one: -one["spearman"],
        ),
        "points": points,
        "references": [*lines, {"name": "no training", "loss": result.before["loss"]}],
    }


def _ranked(
    loaded: LoadedModel, splits: DataSplits, options: ValidateOptions, kept: Path, progress: Progress | None
) -> Ranking:
    wanted = RankOptions(max_examples=options.num_ranking, seed=options.seed, rank=options.rank)
    examples = splits.ranking(options.num_ranking, options.seed)
    asked = {
        "data": content_hash(examples, ordered=False),
        "model": model_key(loaded.identity.as_dict()),
        "[[seed]]": options.seed,
        "[[rank]]": options.rank,
        "[[num_ranking]]": options.num_ranking,
        "version": RECIPE,
    }
    if kept.exists():
        found = Ranking.load(kept)
        kept_as = found.settings
        has = {
            "data": kept_as.get("asked_data"),
            "model": model_key(found.model),
            "[[seed]]": found.seed,
            "[[rank]]": kept_as.get("rank"),
            "[[num_ranking]]": kept_as.get("asked_examples"),
            "version": kept_as.get("recipe"),
        }
        # One of an earlier version does not say what it was made from, and is made again; runs have hashes anyway.
        if has["data"] is not None:
            if differ := sorted(name for name in asked if asked[name] != has[name]):
                raise InputError(
                    f"the validation in {str(kept.parent)!r} was begun with other {', '.join(differ)}. Give the same "
                    "options and data, or name another folder."
                )
            if set(ranking_scores(Needs.KERNEL)) <= set(found.sites[0].scores):
                return found
    ranking = rank_sites(loaded, examples, wanted, task=splits.name, progress=progress)
    ranking = replace(
        ranking, settings={**ranking.settings, "asked_examples": options.num_ranking, "asked_data": asked["data"]}
    )
    with told(f"make the folder {str(kept.parent)!r}"):
        kept.parent.mkdir(parents=True, exist_ok=True)
    ranking.save(kept)
    return ranking


def _references(loaded: LoadedModel, ranking: Ranking, rank: int) -> list[Candidate]:
    best = tuple(parse_site(f"{step.layer}.{step.kind}") for step in ranking.greedy)
    sets = [edit_at(sorted(best, key=lambda site: site.layer), rank)] if len(best) > 1 else []
    return [*sets, weights_of(loaded, "lora", rank), weights_of(loaded, "sft", rank)]


def _trained(outcome: Outcome, n_params: int, scores: dict[str, float] | None = None) -> TrainedSite:
    found = outcome.as_dict()
    return TrainedSite(
        method=outcome.method,
        learning_rate=outcome.learning_rate,
        interior=outcome.interior,
        tried=found["tried"],
        losses=tuple(found["losses"]),
        accuracies=outcome.accuracies,
        seconds=outcome.seconds,
        n_params=n_params,
        scores=dict(scores or {}),
    )


def _num_params(loaded: LoadedModel, one: Candidate, rank: int) -> int:
    if one.config is not None:
        edits = build_edits(one.config, loaded.site_map).values()
        return sum(parameter.numel() for edit in edits for parameter in edit.parameters())
    if one.name == "sft":
        return loaded.identity.n_params
    from steerscope.models.blocks import linear_shape

    return sum(rank * sum(linear_shape(module)) for module in loaded.site_map.linear_maps().values())


def _cost(
    loaded: LoadedModel,
    ranking: Ranking,
    chosen: tuple[Site, ...],
    outcomes: list[Outcome],
    options: ValidateOptions,
) -> dict[str, float]:
    """Compare the ranking's time with the sweep that it replaces: every layer and kind, the search, one seed."""
    # Runs through fewer blocks are faster; the mean over sites spread over depth stands for the mean over all.
    per_run = [o.seconds / (len(o.tried) + options.seeds - 1) for o in outcomes]
    per_site = float(np.mean([run * max(3, len(o.tried)) for run, o in zip(per_run, outcomes, strict=True)]))
    count = len(loaded.site_map.sites())
    spent = sum(ranking.timing.values())
    return {
        "ranking": spent,
        "training": sum(o.seconds for o in outcomes),
        "sweep": per_site * count,
        "ratio": spent / max(per_site * count, 1e-9),
    }
