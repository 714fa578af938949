"""The sweep: choose rates, train every site with every seed, train some for longer; stop at the budget, go on later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from steerscope.analysis.stopwatch import StageProgress, training_progress
from steerscope.analysis.theory.common import spread
from steerscope.errors import InputError
from steerscope.experiments.carrying.jobs import FileJob, OutOfTime, Stage
from steerscope.experiments.engine.candidate import Candidate, by_floor
from steerscope.experiments.engine.rate_grid import EDIT_START, HIGHEST, LOWEST, Choice, rate
from steerscope.experiments.engine.run_count import RunCount
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.engine.sweep import Sweep
from steerscope.experiments.groundwork.carriers import carrier_of, kept_once, kept_pack_size
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import DataSplits, majority_rate
from steerscope.experiments.site_tables.scored import with_scores
from steerscope.experiments.site_tables.table import Base, SiteRun, SiteTable
from steerscope.experiments.site_tables.table_parts import TableCost, TableData, TableSchedule, TrainedEdit
from steerscope.experiments.sweeping.cost import operations_per_token
from steerscope.experiments.sweeping.options import SweepOptions, spread_sites
from steerscope.experiments.sweeping.preparing import begin_folder, fitting_pack, read_scales
from steerscope.experiments.sweeping.recalibration import recalibrate
from steerscope.experiments.sweeping.sweep_scores import sweep_ranking, with_scores_of
from steerscope.experiments.sweeping.table_runs import records_of, run_of
from steerscope.folders import Kind, require_folder_for
from steerscope.installed import package_versions
from steerscope.models.load import LoadedModel, require_loaded
from steerscope.option_types import options_or_default
from steerscope.records import copied
from steerscope.sites import Site, parse_site

SWEEP, TABLE, RUNS, RANKING = "sweep.json", "table.json", "runs", "ranking.json"
SCALES, PACKS, BASE = "scales.json", "packs.json", "base.json"


def sweep_sites(
    loaded: LoadedModel,
    splits: DataSplits,
    options: SweepOptions | None,
    folder: str | Path,
    *,
    progress: StageProgress | None = None,
    command: str = "",
    load: Callable[[], LoadedModel] | None = None,
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
        load: How a process of a Ray cluster loads the model; without it the model itself is sent there.

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
    earlier = _kept_table(place)
    if earlier is not None:
        work.know(earlier)
    table = None
    shard, scales = options.chosen_shard, lambda: work.sweep.scales
    with carrier_of(options, data, scales, place, shard=shard, progress=progress, load=load) as carrier:
        try:
            carrier.carry(work.phases(), work.deadline)
        except OutOfTime:
            pass
        finally:  # Ctrl-C too: what is finished is a table already
            table = work.table(command)
            if table is not None:
                earlier = _kept_table(place)  # another process may have saved one since, with scores
                table = table if earlier is None else with_scores_of(earlier, table)
                table.save(place / TABLE)
        if options.scores and table is not None:
            rank = FileJob(place / RANKING, lambda: sweep_ranking(loaded, splits, options, place / RANKING, progress))
            carrier.carry([[rank.stage()]])
    if table is None:
        raise InputError(
            f"the budget of {options.budget:g} minutes was over before a run was tested; what was trained is kept in "
            f"{str(place)!r}. Go on with it (--resume), with a larger [[budget]]."
        )
    if options.scores:
        table = with_scores(table, sweep_ranking(loaded, splits, options, place / RANKING, progress))
        table.save(place / TABLE)
    return table


def _kept_table(place: Path) -> SiteTable | None:
    return SiteTable.load(place / TABLE) if (place / TABLE).exists() else None


@dataclass
class _Work:
    """One sweep in progress."""

    loaded: LoadedModel
    splits: DataSplits
    options: SweepOptions
    sites: tuple[Site, ...]
    data: SplitData
    folder: Path
    progress: StageProgress | None
    choices: dict[str, Choice] = field(default_factory=dict)
    count: RunCount = field(default_factory=RunCount)

    def __post_init__(self) -> None:
        options = self.options
        self.store = RunStore(self.folder / RUNS)
        self.deadline = time.monotonic() + options.budget_seconds
        self.candidates = [self._candidate(site) for site in self.sites]
        scales: dict[str, float] = {}
        if options.scale == "rms":
            scales = kept_once(self.folder / SCALES, lambda: read_scales(self.loaded, self.data, options.seed))
        self.sweep = self._sweep(self.data, scales)

    def know(self, table: SiteTable) -> None:
        """Count the runs of an earlier table as done: a table alone is enough to go on from.

        Only those of sites whose rate is settled, which a test with the first seed says; of others the trained tensors
        may still be wanted.

        Raises:
            InputError: The table is of other data or another edit.
        """
        ours = {"task": self.splits.name, "edit": self._edit(), "schedule": self._schedule()}
        theirs = {"task": table.task, "edit": table.edit, "schedule": table.schedule}
        for part in ("train", "selection", "test"):
            ours[part] = self.data.content_hash(part, self.options.seed)
            theirs[part] = getattr(table.data, part)
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

    def _cost(self, runs: Sequence[SiteRun]) -> TableCost:
        """Return what the runs cost; those of one seed and length have the same tokens."""
        per_token = operations_per_token(self.loaded)
        tokens = {seed: sum(len(row.ids) for row in self.data.rows(seed)) for seed in {run.seed for run in runs}}
        operations = sum(
            per_token[parse_site(run.site).first_block] * tokens[run.seed] * run.steps / self.options.steps
            for run in runs
        )
        return TableCost(runs=len(runs), seconds=round(sum(run.seconds for run in runs), 1), operations=operations)

    def _edit(self) -> TrainedEdit:
        return copied(TrainedEdit, self.options.config_at(str(self.sites[0])))

    def _schedule(self) -> TableSchedule:
        return copied(TableSchedule, self.options.schedule)

    def phases(self) -> list[list[Stage]]:
        """Return all work, the most urgent first."""
        options, sweep = self.options, self.sweep
        seeds, tuned = options.all_seeds, self._tuned()
        tries = len(options.rates) or 3
        longer = min(options.longer, len(self.candidates))
        sweep.expect(len(tuned) * (tries - 1) + len(self.candidates) * len(seeds) + longer)
        searched, floors = self._floors(tuned.values(), tries), by_floor(self.candidates)
        others = [one for one in self.candidates if one.name not in tuned]
        # As many seeds together as fit: a machine that has room for one floor's runs only trains seed after seed.
        at_once = max(1, min(len(seeds), sweep.pack_size // max(len(floor) for floor in floors)))
        phases = [
            # First: what Ctrl-C leaves is then written at once.
            [FileJob(self.folder / BASE, self._base).stage()],
            [self._tuning(floor, searched[:at]) for at, floor in enumerate(searched)],
            [self._borrowing(floor, tuned, seeds[:at_once]) for floor in self._floors(others, at_once)],
            [self._training(floor, seeds[1:at_once]) for floor in self._floors(tuned.values(), at_once)],
        ]
        for start in range(at_once, len(seeds), at_once):
            own = seeds[start : start + at_once]
            phases.append([self._training(floor, own) for floor in self._floors(self.candidates, at_once)])
        if longer:
            places = spread(len(self.candidates), longer)
            own_floors = self._floors([self.candidates[place] for place in places], 1)
            phases.append([self._training(floor, seeds[:1], longer=True) for floor in own_floors])
        return phases

    def _tuning(self, floor: Sequence[Candidate], below: Sequence[Sequence[Candidate]]) -> Stage:
        """Choose rates, and train and test with them; without given rates, once those of the floors below are known."""
        if not self.options.rates:
            yield from self._chosen([one for other in below for one in other])
        choices = yield from self.sweep.choosing(floor, self.options.seed)
        self.choices |= choices
        yield from self._training(floor, (self.options.seed,))

    def _borrowing(self, floor: Sequence[Candidate], tuned: Mapping[str, Candidate], seeds: Sequence[int]) -> Stage:
        """Train and test with the rates of the nearest sites that have one."""
        yield from self._chosen([self._nearest(one, tuned) for one in floor])
        self.choices |= {one.name: self._borrowed(one, tuned) for one in floor}
        yield from self._training(floor, seeds)

    def _chosen(self, candidates: Sequence[Candidate]) -> Stage:
        """Wait until the rates of some candidates are known."""
        while any(one.name not in self.choices for one in candidates):
            yield ()

    def _training(self, floor: Sequence[Candidate], seeds: Sequence[int], longer: bool = False) -> Stage:
        """Train and test with the chosen rates, once they are known."""
        yield from self._chosen(floor)
        sweep = self._longer if longer else self.sweep
        runs = [(one, self.choices[one.name].learning_rate, seed) for one in floor for seed in seeds]
        yield from sweep.training(runs)
        yield from sweep.testing(runs)

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
            model=loaded.identity,
            task=self.splits.name,
            edit=self._edit(),
            schedule=self._schedule(),
            dtype=loaded.identity.dtype,
            data=TableData(
                train=self.data.content_hash("train", options.seed),
                selection=self.data.content_hash("selection"),
                test=self.data.content_hash("test"),
                num_selection=len(self.data.held_out("selection").sequences),
                num_test=len(tested),
                example=tested[0].prompt + tested[0].completion,
            ),
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
        size = kept_pack_size(
            self.folder / PACKS,
            schedule.steps,
            options.pack_size,
            lambda: fitting_pack(self.loaded, data, options.seed),
            options.chosen_shard,
        )
        return Sweep(
            self.loaded,
            data,
            schedule,
            self.store,
            scales,
            size,
            training_progress(self.progress),
            options.rates,
            self.deadline,
            count=self.count,
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
        chosen = [own[place] for own in by_kind.values() for place in spread(len(own), wanted or len(own))]
        return {one.name: one for one in chosen}

    def _borrowed(self, one: Candidate, tuned: Mapping[str, Candidate]) -> Choice:
        """Return the rate of the nearest site of the same kind whose rate was chosen."""
        return Choice(self.choices[self._nearest(one, tuned).name].learning_rate, False, {})

    def _nearest(self, one: Candidate, tuned: Mapping[str, Candidate]) -> Candidate:
        same = [other for other in tuned.values() if other.group == one.group]
        return min(same, key=lambda other: (abs(other.first_block - one.first_block), other.first_block))

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
        def measured() -> dict[str, Any]:
            found = recalibrate(self.loaded, self.data.rows(self.options.seed), self.data.held_out("test"))
            return asdict(found.base(majority_rate(self.splits.test(self.options.num_test))))

        return Base(**kept_once(self.folder / BASE, measured))
