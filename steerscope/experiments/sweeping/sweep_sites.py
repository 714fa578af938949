"""The sweep: choose rates, train every site with every seed, train some for longer; stop at the budget, go on later."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.errors import InputError
from steerscope.experiments.engine.candidate import Candidate, by_floor
from steerscope.experiments.engine.rate_grid import EDIT_START, HIGHEST, LOWEST, Choice, rate
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.engine.sweep import OutOfTime, Sweep
from steerscope.experiments.groundwork.kept_ranking import kept_ranking
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import DataSplits, majority_rate
from steerscope.experiments.site_tables.scored import with_scores
from steerscope.experiments.site_tables.table import Base, SiteRun, SiteTable
from steerscope.experiments.sweeping.cost import operations_per_token
from steerscope.experiments.sweeping.options import SweepOptions, spread, spread_sites
from steerscope.experiments.sweeping.preparing import begin_folder, fitting_pack, read_scales
from steerscope.experiments.sweeping.recalibration import recalibrate
from steerscope.experiments.sweeping.table_runs import records_of, run_of
from steerscope.files import json_of, write_text
from steerscope.folders import Kind, require_folder_for
from steerscope.installed import package_versions
from steerscope.models.load import LoadedModel, require_loaded
from steerscope.option_types import options_or_default
from steerscope.sites import Site, parse_site

SWEEP, TABLE, RUNS = "sweep.json", "table.json", "runs"

Progress = Callable[[str, int, int], None]


def sweep_sites(
    loaded: LoadedModel,
    splits: DataSplits,
    options: SweepOptions | None,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    command: str = "",
) -> SiteTable:
    """Train an edit at every site of a sweep, one site per run, and return the table of what came out.

    The order of work: rates at the layers that are tuned, then the first seed at all sites, then the other seeds, then
    the longer runs; so an early end leaves a table of all sites with fewer seeds. Runs that enter at one block train
    together, on streams that were computed below them once.

    Args:
        loaded: The model; its weights stay as they are.
        splits: Training, selection and test examples.
        options: Sites, edit, length of training, budget.
        folder: Where runs (``runs/``), settings (``sweep.json``) and the table (``table.json``) are kept. What is there
            and was made with the same options is used again: a sweep that was interrupted, or whose budget was over,
            goes on where it stopped, and comes to the same table.
        progress: Called with what is being done, runs done, and runs in all (an estimate while rates are searched).
        command: What the user typed, for the record.

    Returns:
        The table, of everything that is finished.

    Raises:
        InputError: Bad options, too few examples, a folder that holds something else or a sweep with other options, or
            a budget that was over before anything was tested.

    Cost: three runs or more per site of a tuned layer, one per other site, one per site and further seed; a run is
        ``steps`` passes, forward and backward, through the blocks from its site up.
    """
    require_loaded(loaded)
    options, place = options_or_default(options, SweepOptions), Path(folder)
    require_folder_for(place, Kind.SWEEP, also=(Kind.RANKING,))
    sites = spread_sites(loaded.site_map, options.sites)
    for site in sites:
        options.config_at(str(site)).resolve(loaded.site_map)
    data = SplitData(loaded, splits, options.schedule, options.num_selection, options.num_test)
    data.check(options.all_seeds)
    begin_folder(place / SWEEP, "sweep", loaded, data, options.as_dict())
    work = _Work(loaded, splits, options, sites, data, place, progress)
    earlier = SiteTable.load(place / TABLE) if (place / TABLE).exists() else None
    if earlier is not None:
        work.know(earlier)
    try:
        work.all()
    except OutOfTime:
        pass
    finally:  # Ctrl-C too: what is finished is a table already
        table = work.table(command)
        if table is not None:
            table = table if earlier is None else _with_scores_of(earlier, table)
            table.save(place / TABLE)
    if table is None:
        raise InputError(
            f"the budget of {options.budget:g} minutes was over before a run was tested; what was trained is kept in "
            f"{str(place)!r}. Go on with it (--resume), with a larger [[budget]]."
        )
    if options.scores:
        table = with_scores(table, _ranking(loaded, splits, options, place, progress))
        table.save(place / TABLE)
    return table


def _with_scores_of(earlier: SiteTable, table: SiteTable) -> SiteTable:
    """Return a table with the scores that an earlier one of the same sweep had, if they cover its sites."""
    trained = {str(one.site) for one in table.outcomes()}
    if not all(trained <= set(own) for own in earlier.scores.values()):
        return table
    return replace(table, scores=earlier.scores, ranking=earlier.ranking)


def _ranking(
    loaded: LoadedModel, splits: DataSplits, options: SweepOptions, place: Path, progress: Progress | None
) -> Ranking:
    """Rank all sites with every score that is computed from kernels, from training examples.

    Returns:
        The ranking, read back from ``ranking.json`` where an earlier start of the sweep finished it.
    """
    seen = options.steps * options.batch_size
    wanted = RankOptions(extra=("spectrum",), seed=options.seed, rank=options.counted_rank, num_training=seen)
    return kept_ranking(loaded, splits, place / "ranking.json", wanted, progress)


@dataclass
class _Work:
    """One sweep in progress."""

    loaded: LoadedModel
    splits: DataSplits
    options: SweepOptions
    sites: tuple[Site, ...]
    data: SplitData
    folder: Path
    progress: Progress | None
    choices: dict[str, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = self.options
        budget = math.inf if options.budget is None else 60 * options.budget
        self.store = RunStore(self.folder / RUNS)
        self.deadline = time.monotonic() + budget
        self.candidates = [self._candidate(site) for site in self.sites]
        self.sweep = self._sweep(
            self.data, read_scales(self.loaded, self.data, options.seed) if options.scale == "rms" else {}
        )

    def know(self, table: SiteTable) -> None:
        """Count the runs of an earlier table as done: a table alone is enough to go on from.

        Only those of sites whose rate is settled, which a test with the first seed says; of others the trained tensors
        may still be wanted.

        Raises:
            InputError: The table is of other data or another edit.
        """
        ours = {"task": self.splits.name, "edit": self._edit(), "schedule": asdict(self.options.schedule)}
        theirs = {"task": table.task, "edit": table.edit, "schedule": table.schedule}
        for part in ("train", "selection", "test"):
            ours[part] = self.data.content_hash(part, self.options.seed)
            theirs[part] = table.data[part]
        if differ := [name for name in ours if ours[name] != theirs[name]]:
            raise InputError(
                f"the table in {str(self.folder)!r} was made with another {', '.join(differ)}. Name another folder."
            )
        by_name = {one.name: one for one in self.candidates}
        settled = {str(one.site) for one in table.outcomes()}
        for run in table.runs:
            if run.site in settled and run.site in by_name:
                sweep = self.sweep if run.steps == self.options.steps else self._longer
                sweep.know((by_name[run.site], run.learning_rate, run.seed), *records_of(run))

    def _cost(self, runs: Sequence[SiteRun]) -> dict[str, float]:
        """Return what the runs cost; those of one seed and length have the same tokens."""
        per_token = operations_per_token(self.loaded)
        tokens = {seed: sum(len(row.ids) for row in self.data.rows(seed)) for seed in {run.seed for run in runs}}
        operations = sum(
            per_token[parse_site(run.site).layer] * tokens[run.seed] * run.steps / self.options.steps for run in runs
        )
        return {"runs": len(runs), "seconds": round(sum(run.seconds for run in runs), 1), "operations": operations}

    def _edit(self) -> dict[str, Any]:
        config = self.options.config_at(str(self.sites[0])).to_dict()
        return {name: value for name, value in config.items() if name not in ("sites", "seed")}

    def all(self) -> None:
        """Do everything; raises OutOfTime at the deadline."""
        options, sweep = self.options, self.sweep
        self._base()  # first: what Ctrl-C leaves is then written at once
        seeds, tuned = options.all_seeds, self._tuned()
        tries = len(options.rates) or 3
        longer = min(options.longer, len(self.candidates))
        sweep.expect(len(tuned) * (tries - 1) + len(self.candidates) * len(seeds) + longer)
        for floor in self._floors(tuned.values(), tries):
            self.choices |= sweep.choose(floor, seeds[0])
            self._train(floor, seeds[:1])
        others = [one for one in self.candidates if one.name not in tuned]
        self.choices |= {one.name: self._borrowed(one, tuned) for one in others}
        # As many seeds together as fit: a machine that has room for one floor's runs only trains seed after seed.
        width = max(len(floor) for floor in by_floor(self.candidates))
        at_once = max(1, min(len(seeds), sweep.pack_size // width))
        for floor in self._floors(others, at_once):
            self._train(floor, seeds[:at_once])
        for floor in self._floors(tuned.values(), at_once):
            self._train(floor, seeds[1:at_once])
        for start in range(at_once, len(seeds), at_once):
            for floor in self._floors(self.candidates, at_once):
                self._train(floor, seeds[start : start + at_once])
        self._train_longer(spread(list(range(len(self.candidates))), longer) if longer else [])

    def table(self, command: str) -> SiteTable | None:
        """Return the table of everything that is kept, or None where no run was tested."""
        options, loaded = self.options, self.loaded
        runs = [run for one in self.candidates for run in self._runs_of(one, self.sweep, options.steps)]
        if not any(run.accuracy is not None for run in runs):
            return None
        if options.longer:
            runs += [run for one in self.candidates for run in self._runs_of(one, self._longer, 2 * options.steps)]
        tested = self.splits.test(options.num_test)
        return SiteTable(
            model=loaded.identity.as_dict(),
            task=self.splits.name,
            edit=self._edit(),
            schedule=asdict(options.schedule),
            dtype=loaded.identity.dtype,
            data={
                "train": self.data.content_hash("train", options.seed),
                "selection": self.data.content_hash("selection"),
                "test": self.data.content_hash("test"),
                "num_selection": len(self.data.held_out("selection").sequences),
                "num_test": len(tested),
                "example": tested[0].prompt + tested[0].completion,
            },
            base=self._base(),
            runs=tuple(runs),
            versions=package_versions(),
            command=command,
            cost=self._cost(runs),
        )

    # --- parts ---

    def _candidate(self, site: Site) -> Candidate:
        config = self.options.config_at(str(site))
        return Candidate(str(site), config, EDIT_START[self.options.scale], site.kind.value)

    def _sweep(self, data: SplitData, scales: Mapping[str, float]) -> Sweep:
        options, schedule = self.options, data.schedule
        size = options.pack_size or fitting_pack(self.loaded, data, options.seed)
        return Sweep(
            self.loaded,
            data,
            schedule,
            self.store,
            scales,
            size,
            self.progress,
            options.rates,
            self.deadline,
        )

    def _floors(self, candidates: Iterable[Candidate], runs: int) -> list[list[Candidate]]:
        """Return candidates that train together, lowest first: those that enter at one block.

        On a GPU neighbouring blocks are put together until a pack is full: their runs begin at the lowest, which
        computes more and waits less.
        """
        merged: list[list[Candidate]] = []
        for floor in by_floor(list(candidates)):
            fits = merged and (len(merged[-1]) + len(floor)) * runs <= self.sweep.pack_size
            if fits and self.loaded.device.type == "cuda":
                merged[-1].extend(floor)
            else:
                merged.append(floor)
        return merged

    def _train(self, floor: Sequence[Candidate], seeds: Sequence[int]) -> None:
        runs = [(one, self.choices[one.name].learning_rate, seed) for one in floor for seed in seeds]
        self.sweep.train(runs)
        self.sweep.test(runs)

    def _train_longer(self, places: Sequence[int]) -> None:
        for floor in self._floors([self.candidates[place] for place in places], 1):
            runs = [(one, self.choices[one.name].learning_rate, self.options.seed) for one in floor]
            self._longer.train(runs)
            self._longer.test(runs)

    @cached_property
    def _longer(self) -> Sweep:
        """The sweep of runs of twice as many steps; its examples are read once."""
        steps = Schedule(2 * self.options.steps, self.options.batch_size)
        data = SplitData(self.loaded, self.splits, steps, self.options.num_selection, self.options.num_test)
        return self._sweep(data, self.sweep.scales)

    def _tuned(self) -> dict[str, Candidate]:
        """Return the candidates whose rates are chosen: of every kind those at evenly spread layers."""
        by_kind: dict[str, list[Candidate]] = {}
        for one in self.candidates:
            by_kind.setdefault(one.group, []).append(one)
        wanted = self.options.tune_layers
        chosen = [
            own[place]
            for own in by_kind.values()
            for place in spread(range(len(own)), min(wanted or len(own), len(own)))
        ]
        return {one.name: one for one in chosen}

    def _borrowed(self, one: Candidate, tuned: Mapping[str, Candidate]) -> Choice:
        """Return the rate of the nearest site of the same kind whose rate was chosen."""
        same = [other for other in tuned.values() if other.group == one.group]
        nearest = min(same, key=lambda other: (abs(other.lowest_block - one.lowest_block), other.lowest_block))
        return Choice(self.choices[nearest.name].learning_rate, False, {})

    def _runs_of(self, one: Candidate, sweep: Sweep, steps: int) -> list[SiteRun]:
        """Return all kept runs of a site: at every rate and seed that the sweep can have tried."""
        rates = self.options.rates or tuple(rate(place) for place in range(LOWEST, HIGHEST + 1))
        found = []
        for seed in self.options.all_seeds:
            for learning_rate in rates:
                trained, tested = sweep.kept((one, learning_rate, seed))
                if trained is not None:
                    found.append(run_of(one.name, learning_rate, seed, steps, trained, tested))
        return found

    def _base(self) -> Base:
        kept = self.folder / "base.json"
        if kept.exists():
            return Base(**json_of(kept))
        found = recalibrate(self.loaded, self.data.rows(self.options.seed), self.data.held_out("test"))
        base = Base(
            loss=found.before.loss,
            accuracy=found.before.accuracy,
            majority=majority_rate(self.splits.test(self.options.num_test)),
            recalibrated_loss=found.after.loss,
            recalibrated_accuracy=found.after.accuracy,
            temperature=found.temperature,
        )
        write_text(kept, json.dumps(vars(base), indent=1, allow_nan=False) + "\n")
        return base
