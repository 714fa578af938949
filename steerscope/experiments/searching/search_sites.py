"""The search: rank, train the first steps at the candidates in packs, keep halving, finish, save the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.stopwatch import StageProgress, training_progress
from steerscope.errors import InputError
from steerscope.experiments.carrying.jobs import Carrier, InProcess, OutOfTime
from steerscope.experiments.engine.candidate import Candidate, Run
from steerscope.experiments.engine.rate_grid import EDIT_START, next_places, rate
from steerscope.experiments.engine.run_records import seeded
from steerscope.experiments.engine.staged import StagedSweep
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.groundwork.candidates import num_params, weights_of
from steerscope.experiments.groundwork.carriers import carrier_of
from steerscope.experiments.groundwork.kept_ranking import kept_ranking
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import DataSplits, majority_rate
from steerscope.experiments.searching.choosing import chosen_sites, rates_of, sets_of
from steerscope.experiments.searching.halving import KEPT, RUNGS, Standing, halve
from steerscope.experiments.searching.options import SearchOptions
from steerscope.experiments.searching.result import Contender, SearchResult, SearchSettings, Tested, Untrained
from steerscope.experiments.sweeping.preparing import begin_folder, fitting_pack, read_scales
from steerscope.experiments.sweeping.recalibration import recalibrate
from steerscope.finite import finite_or_none
from steerscope.folders import ADAPTER_FOLDER, Kind, require_folder_for
from steerscope.installed import is_installed, package_versions
from steerscope.models.load import LoadedModel, require_loaded
from steerscope.option_types import options_or_default
from steerscope.records import copied
from steerscope.sites import parse_site
from steerscope.steering.holding import served_as
from steerscope.steering.model import get_steering_model

RESULT, BEGUN = "search.json", "begun.json"
# So many of the best runs may lack a neighbour on the grid of rates, which is then trained too.
FINISHED = 2
# Rate of an edit at all layers of a kind, where its search begins: the sum of so many edits wants a smaller one.
ALL_LAYERS_START = -6


def search_sites(
    loaded: LoadedModel,
    splits: DataSplits,
    options: SearchOptions | None,
    folder: str | Path,
    *,
    progress: StageProgress | None = None,
    command: str = "",
    load: Callable[[], LoadedModel] | None = None,
) -> SearchResult:
    """Find the site, or the set of sites, at which training gives most, and return an adapter trained there.

    Candidates are ranked before anything is trained; their first steps are trained in packs, at several learning rates;
    the better third goes on, twice; what is left is trained to the end, and its rate is made interior. All choices are
    made on training losses, then on selection examples; test examples are read once, for the chosen one.

    Args:
        loaded: The model; its weights stay as they are.
        splits: Training, selection and test examples.
        options: Budget, candidates, edit.
        folder: Where runs, ``ranking.json``, ``search.json`` and the trained ``adapter/`` are kept. A search that was
            interrupted goes on where it stopped.
        progress: Called with a stage, steps done, and steps in all.
        command: What the user typed, for the record.
        load: How a process of a Ray cluster loads the model; without it the model itself is sent there.

    Returns:
        The chosen edit with its test loss and accuracy, everything it was chosen from, and plain defaults beside it.

    Raises:
        InputError: Bad options, too few examples, a folder that holds something else or another search, or a budget
            that was over before the first runs were compared.

    Cost: a ranking; about a third of a whole run per candidate and learning rate (three of these each); the finalists.
        References take at most as long again.
    """
    require_loaded(loaded)
    options, place = options_or_default(options, SearchOptions), Path(folder)
    require_folder_for(place, Kind.SEARCH, also=(Kind.RANKING,))
    data = SplitData(loaded, splits, options.schedule, options.num_selection, options.num_test)
    data.check((options.seed,))
    begin_folder(place / BEGUN, "search", loaded, data, _deciding(options))
    work = _Work(loaded, splits, options, data, place, progress)
    with carrier_of(options, data, lambda: work.scales, place, progress=progress, load=load) as work.carrier:
        return work.whole(command)


def _deciding(options: SearchOptions) -> dict[str, Any]:
    """Return the options that a search in one folder has to share; more time or candidates may be given later."""
    free = ("budget", "candidates", "references")
    return {name: value for name, value in options.as_dict().items() if name not in free}


@dataclass
class _Work:
    """One search in progress."""

    loaded: LoadedModel
    splits: DataSplits
    options: SearchOptions
    data: SplitData
    folder: Path
    progress: StageProgress | None
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    carrier: Carrier = field(default_factory=InProcess)

    @cached_property
    def scales(self) -> dict[str, float]:
        """Of what sites read, where edits are scaled."""
        return read_scales(self.loaded, self.data, self.options.seed) if self.options.scale == "rms" else {}

    def whole(self, command: str) -> SearchResult:
        """Search, train the references, save.

        Returns:
            The best site, everything that was tried, and the references.
        """
        options, loaded = self.options, self.loaded
        since = time.monotonic()
        budget = options.budget_seconds
        wanted = RankOptions(max_examples=options.num_ranking, seed=options.seed, rank=options.counted_rank)
        ranking = kept_ranking(loaded, self.splits, self.folder / "ranking.json", wanted, self.progress)
        self.seconds["ranking"] = time.monotonic() - since
        sweep = self._sweep(since + budget)
        candidates = self._candidates(ranking)
        standings = self._halved(sweep, candidates, since + budget)
        best, finished = self._finished(sweep, standings)
        self.seconds["search"] = time.monotonic() - since - self.seconds["ranking"]
        references = self._references(time.monotonic() + min(budget, time.monotonic() - since))
        # Only now are test examples looked at.
        sweep.deadline = math.inf
        sweep.carried(sweep.testing([best]))
        found = recalibrate(loaded, self.data.rows(options.seed), self.data.held_out("test"))
        before = found.base(majority_rate(self.splits.test(options.num_test)))
        tested = self._tested(sweep, best, [run for run in finished if run[0].name == best[0].name])
        self._save_adapter(sweep, best, tested)
        result = SearchResult(
            model=loaded.identity,
            task=self.splits.name,
            options=copied(SearchSettings, options),
            best=tested,
            before=Untrained(**asdict(before), num_test=len(self.data.held_out("test").sequences)),
            contenders=self._contenders(sweep, standings, ranking),
            references=tuple(references),
            seconds=self.seconds,
            adapter=str(self.folder / ADAPTER_FOLDER),
            versions=package_versions(),
            command=command,
            note=self.note,
        )
        result.save(self.folder / RESULT)
        return result

    # --- stages ---

    def _candidates(self, ranking: Ranking) -> list[Candidate]:
        options = self.options
        singles = chosen_sites(ranking, options.candidates, options.start, self.loaded.site_map)
        names: list[tuple[str, ...]] = [(name,) for name in singles]
        if options.sets:
            names += sets_of(ranking, singles[0], self.loaded.site_map)
        return [self._candidate(own) for own in dict.fromkeys(names)]

    def _candidate(self, sites: tuple[str, ...]) -> Candidate:
        start = EDIT_START[self.options.scale] if len(sites) < 4 else ALL_LAYERS_START
        kinds = {parse_site(name).kind.value for name in sites}
        return Candidate("+".join(sites), self.options.config_at(*sites), start, "+".join(sorted(kinds)))

    def _halved(self, sweep: StagedSweep, candidates: Sequence[Candidate], deadline: float) -> list[Standing]:
        runs: list[Run] = [(one, own, self.options.seed) for one in candidates for own in rates_of(one)]
        affordable = self._affordable(sweep, runs, deadline)
        if affordable < len(runs):
            self.note = (
                f"The budget left time for {affordable} of {len(runs)} runs, those whose sites come first in the "
                "ranking."
            )
        since = time.monotonic()
        sweep.expect(round(affordable * (1 + KEPT + KEPT**2)))
        work, last = affordable * RUNGS[0], RUNGS[0]

        def shrink(count: int, part: float) -> int:
            """Return how many of the runs there is time for in the next rung, at the speed so far."""
            nonlocal work, last
            seconds = (time.monotonic() - since) / work * (part - last)
            fitting = max(1, min(count, math.floor(min((deadline - time.monotonic()) / max(seconds, 1e-9), count))))
            work, last = work + fitting * (part - last), part
            return fitting

        try:
            return halve(sweep, runs[:affordable], shrink=shrink)
        except OutOfTime:
            raise InputError(
                f"the budget of {self.options.budget:g} minutes was over before the first runs were compared; what was "
                f"done is kept in {str(self.folder)!r}. Go on with it (--resume), with a larger [[budget]]."
            ) from None

    def _affordable(self, sweep: StagedSweep, runs: Sequence[Run], deadline: float) -> int:
        """Return how many runs there is time for, by the time that one step of one pack takes."""
        if not math.isfinite(deadline):
            return len(runs)
        middle = sorted(runs, key=lambda run: run[0].first_block)[len(runs) // 2]
        same = [run for run in runs if run[0].first_block == middle[0].first_block][: sweep.pack_size]
        seconds = sweep.seconds_per_step(same)
        share = RUNGS[0] + (RUNGS[1] - RUNGS[0]) * KEPT + (1 - RUNGS[1]) * KEPT**2
        per_run = seconds * sweep.schedule.steps * share
        # A fifth of the time is left for the finish and its tests.
        count = int(0.8 * (deadline - time.monotonic()) / max(per_run, 1e-9))
        return max(min(len(runs), 6), min(len(runs), count))

    def _finished(self, sweep: StagedSweep, standings: Sequence[Standing]) -> tuple[Run, list[Run]]:
        """Return the best run that was trained to the end, after its rate's neighbours were; and all such runs."""
        whole = [one.run for one in standings if one.steps == sweep.schedule.steps]
        finished = list(whole)
        best_first = sorted(whole, key=lambda run: _loss(sweep, run))
        for name in list(dict.fromkeys(run[0].name for run in best_first))[:FINISHED]:
            own = [run for run in finished if run[0].name == name]
            while wanted := next_places({_place(run[1]): _loss(sweep, run) for run in own}, 0):
                more = [(own[0][0], rate(place), own[0][2]) for place in wanted]
                try:
                    sweep.advance(more, sweep.schedule.steps)
                except OutOfTime:
                    self.note += " The budget was over before the best rate had both neighbours."
                    break
                own += more
                finished += more
        return min(finished, key=lambda run: _loss(sweep, run)), finished

    def _references(self, deadline: float) -> list[Tested]:
        """Train plain defaults, each with a search for its rate until half of the time is over.

        Returns:
            Test results of the plain defaults; none where references were not asked for.
        """
        if not self.options.references:
            return []
        since = time.monotonic()
        every = tuple(f"{layer}.resid_post" for layer in range(len(self.loaded.site_map.blocks)))
        plain = [self._candidate(every)]
        if is_installed("peft"):
            plain.append(weights_of(self.loaded, "lora", self.options.counted_rank))
        found = []
        for index, one in enumerate(plain):
            part = deadline if math.isinf(deadline) else since + (deadline - since) * (index + 1) / len(plain)
            sweep = self._sweep(part)
            tried: dict[int, Run] = {}
            try:
                while wanted := next_places({p: _loss(sweep, run) for p, run in tried.items()}, one.start):
                    for place in sorted(wanted, key=lambda place: abs(place - one.start)):
                        run = (one, rate(place), self.options.seed)
                        # The default rate is trained even past the deadline: it is what others are compared with.
                        sweep.deadline = part if tried else math.inf
                        sweep.carried(sweep.training([run]))
                        tried[place] = run
            except OutOfTime:
                pass
            sweep.deadline = math.inf
            best = min(tried.values(), key=lambda run: _loss(sweep, run))
            sweep.carried(sweep.testing([best]))
            found.append(self._tested(sweep, best, list(tried.values())))
        self.seconds["references"] = time.monotonic() - since
        return found

    # --- parts ---

    def _sweep(self, deadline: float) -> StagedSweep:
        options, tell = self.options, training_progress(self.progress)
        size = fitting_pack(self.loaded, self.data, options.seed)
        store = RunStore(self.folder / "runs")
        made = StagedSweep(self.loaded, self.data, options.schedule, store, self.scales, size, tell, (), deadline)
        made.carrier = self.carrier
        return made

    def _tested(self, sweep: StagedSweep, run: Run, tried: Sequence[Run]) -> Tested:
        trained, tested = sweep.kept(run)
        assert trained is not None
        assert tested is not None
        places = [_place(other[1]) for other in tried]
        loss = float(tested["loss"])
        return Tested(
            name=run[0].name,
            learning_rate=run[1],
            interior=min(places) < _place(run[1]) < max(places),
            loss=finite_or_none(loss),
            accuracy=float(tested["accuracy"]),
            n_params=num_params(self.loaded, run[0], self.options.counted_rank),
            seconds=sum(float((sweep.kept(other)[0] or {"seconds": 0.0})["seconds"]) for other in tried),
            served_as=None if run[0].config is None else served_as(run[0].config, self.loaded.site_map),
        )

    def _contenders(self, sweep: StagedSweep, standings: Sequence[Standing], ranking: Ranking) -> tuple[Contender, ...]:
        family = "vector" if self.options.family == "vector" else "linear"
        scores = {site.name: site.score for site in ranking.sites if site.family == family}
        found = []
        for one in standings:
            trained = sweep.kept(one.run)[0] if one.steps == sweep.schedule.steps else None
            loss = None if trained is None else float(trained["selection_loss"])
            found.append(
                Contender(
                    name=one.run[0].name,
                    learning_rate=one.run[1],
                    steps=one.steps,
                    train_loss=finite_or_none(one.loss),
                    selection_loss=finite_or_none(loss),
                    selection_accuracy=None if trained is None else float(trained["selection_accuracy"]),
                    score=scores.get(one.run[0].name),
                )
            )
        return tuple(found)

    def _save_adapter(self, sweep: StagedSweep, best: Run, tested: Tested) -> None:
        """Write the chosen edit as an adapter, and take it off the model again."""
        one, _, seed = best
        assert one.config is not None
        model = get_steering_model(self.loaded, seeded(one.config, seed))
        try:
            _fill(model.steering_tensors(), sweep.tensors_of(best))
            model.mark_ready()
            known = {"Task": self.splits.name, "Test accuracy": tested.accuracy, "Test loss (nats)": tested.loss}
            measured = {name: value for name, value in known.items() if value is not None}
            model.save_pretrained(self.folder / ADAPTER_FOLDER, measured=measured)
        finally:
            model.unload()


@torch.no_grad()
def _fill(tensors: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor]) -> None:
    for name, value in tensors.items():
        value.copy_(trained[name])


def _loss(sweep: StagedSweep, run: Run) -> float:
    trained = sweep.kept(run)[0]
    return math.inf if trained is None else float(trained["selection_loss"])


def _place(learning_rate: float) -> int:
    return round(2 * math.log10(learning_rate))
