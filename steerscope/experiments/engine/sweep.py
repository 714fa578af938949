"""Train many candidates, each at a learning rate of its own and with several seeds; every run is kept as it ends.

The rate is chosen with the first seed, on selection examples, and kept for the other seeds; test examples are judged
with the chosen rate only. Runs that enter at one block train together. The order of work changes no result, and what a
store already has is not computed again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from steerscope.analysis.provenance import model_key
from steerscope.analysis.stopwatch import StageProgress
from steerscope.experiments.carrying.jobs import Carrier, InProcess, Job, Stage, require_time
from steerscope.experiments.engine.candidate import Candidate, Outcome, Run, Store, SweepData, by_floor
from steerscope.experiments.engine.edits import zero_edit
from steerscope.experiments.engine.frozen import FrozenStreams
from steerscope.experiments.engine.judge import Judged, judge_pack
from steerscope.experiments.engine.loop import train_pack
from steerscope.experiments.engine.pack import EditPack, Pack
from steerscope.experiments.engine.pack_job import PackJob, Task
from steerscope.experiments.engine.rate_grid import Choice, best_place, choice_among, next_places, rate
from steerscope.experiments.engine.run_count import RunCount
from steerscope.experiments.engine.run_records import seeded, spec_of, tested_record, trained_record
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.store import key_of
from steerscope.finite import require_finite
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token

JUDGE_BATCH = 32

Carried = TypeVar("Carried")


@dataclass
class Sweep:
    """The training of many candidates.

    Attributes:
        loaded: The model.
        data: Training, selection and test examples.
        schedule: How every run is trained.
        store: Where runs are kept.
        scales: Root mean square of what sites read, by name, for edits with ``scale="rms"``.
        pack_size: Most runs in one pack.
        progress: Called as work goes on.
        rates: Learning rates to choose among; without them a grid of half decades is searched until the best rate has
            worse neighbours on both sides.
        deadline: Of ``time.monotonic()``: no pack is begun after it.
        carrier: What carries packs: this process, unless given.
        count: Counts runs for :attr:`progress`; sweeps that are one piece of work share it.
    """

    loaded: LoadedModel
    data: SweepData
    schedule: Schedule
    store: Store
    scales: Mapping[str, float]
    pack_size: int = 4
    progress: StageProgress | None = None
    rates: tuple[float, ...] = ()
    deadline: float = math.inf
    carrier: Carrier = field(default_factory=InProcess)
    count: RunCount = field(default_factory=RunCount)
    _near: dict[str, int] = field(default_factory=dict)
    _streams: FrozenStreams | None = None

    def __post_init__(self) -> None:
        self.count.progress = self.progress

    def run(self, candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[Outcome]:
        """Train every candidate with every seed; return outcomes in the order of the candidates.

        Args:
            candidates: The edits, or ways to train weights, to compare.
            seeds: Seeds of start and examples; the first one also chooses the learning rate.

        Returns:
            Per candidate its learning rate, and its test losses in nats and accuracies per seed.

        Cost: at least three runs per candidate with the first seed, one with every other.
        """
        self.expect(len(candidates) * (3 + len(seeds) - 1))
        choices: dict[str, Choice] = {}
        floors = by_floor(candidates)
        for floor in floors:
            choices |= self.carried(self.choosing(floor, seeds[0]))
        for seed in seeds[1:]:
            for floor in floors:
                self.carried(self.training([(one, choices[one.name].learning_rate, seed) for one in floor]))
        for floor in floors:
            chosen = [(one, choices[one.name].learning_rate, seed) for one in floor for seed in seeds]
            self.carried(self.testing(chosen))
        return [self._outcome(one, choices[one.name], seeds) for one in candidates]

    def expect(self, runs: int) -> None:
        """Say how many runs there will be, for the progress."""
        self.count.expect(runs)

    def untrained(self) -> Judged:
        """Judge the model as it is on the test examples.

        Returns:
            Losses in nats and correctness per test example.

        Raises:
            InputError: There, or on the selection examples, it has a loss that is NaN or infinite: it would be taken
                for that of trainings that diverged.
        """
        pack = self._edits([(Candidate("", zero_edit(self.loaded.site_map), 0, ""), 1.0, 0)])
        found = {part: self._judged(pack, part)[0] for part in ("selection", "test")}
        for part, judged in found.items():
            require_finite(f"the loss of the untrained model on the {part} examples", judged.losses)
        return found["test"]

    def choosing(self, floor: Sequence[Candidate], seed: int) -> Generator[Sequence[Job], None, dict[str, Choice]]:
        """Search the learning rates of candidates that enter at one block, together, as a stage.

        Without :attr:`rates`, where the search begins depends on where those of earlier floors ended.

        Args:
            floor: The candidates.
            seed: With which runs are trained.

        Yields:
            The packs whose results decide what is tried next.

        Returns:
            By name, the rate with the lowest selection loss.
        """
        if self.rates:
            return (yield from self._choosing_among(floor, seed))
        tried: dict[str, dict[int, float]] = {one.name: {} for one in floor}
        starts = {one.name: self._near.get(one.group, one.start) for one in floor}
        while True:
            wanted = [
                (one, place) for one in floor for place in next_places(tried[one.name], starts[one.name])
            ]  # for those whose best rate has both neighbours there is none
            if not wanted:
                break
            if any(tried.values()):
                self.count.more(len(wanted))  # the three that every search takes are expected
            records = yield from self.training([(one, rate(place), seed) for one, place in wanted])
            for (one, place), record in zip(wanted, records, strict=True):
                tried[one.name][place] = float(record["selection_loss"])
        for one in floor:
            self._near[one.group] = best_place(tried[one.name])
        return {one.name: choice_among(tried[one.name]) for one in floor}

    def _choosing_among(
        self, floor: Sequence[Candidate], seed: int
    ) -> Generator[Sequence[Job], None, dict[str, Choice]]:
        """Choose among the rates that were given.

        Yields:
            The packs of all of them.

        Returns:
            The choice of each candidate, by name; it is interior where neither end of the given rates won.
        """
        rates = sorted(self.rates)
        records = iter((yield from self.training([(one, rate_, seed) for one in floor for rate_ in rates])))
        found = {}
        for one in floor:
            losses = {rate_: float(next(records)["selection_loss"]) for rate_ in rates}
            best = min(rates, key=lambda rate_, own=losses: own[rate_])  # type: ignore[misc]
            found[one.name] = Choice(best, math.isfinite(losses[best]) and rates[0] < best < rates[-1], losses)
        return found

    def training(self, runs: Sequence[Run]) -> Generator[Sequence[Job], None, list[dict[str, Any]]]:
        """Train runs that enter at one block, those that are not kept yet, as a stage.

        Args:
            runs: Candidate, learning rate and seed of each.

        Yields:
            Their packs.

        Returns:
            Their records, from the store or made now.

        Cost: one training per run that is not kept yet; :attr:`pack_size` runs at a time.
        """
        if runs:
            self.count.ask(sum(self.store.get(self._config(*run)) is None for run in runs))
            yield [self.job("train", own) for own in self._packs(runs)]
        found = [self.store.get(self._config(*run)) for run in runs]
        return [record for record in found if record is not None]

    def carried(self, stage: Generator[Sequence[Job], None, Carried]) -> Carried:
        """Have one stage carried.

        Returns:
            What it returns.

        Raises:
            OutOfTime: Before a pack that begins after the deadline.
        """
        found: list[Carried] = []

        def whole() -> Stage:
            found.append((yield from stage))

        self.carrier.carry([[whole()]], self.deadline)
        return found[0]

    def job(self, what: str, runs: Sequence[Run]) -> PackJob:
        """Make the runs of one pack a job.

        Args:
            what: ``train`` or ``test``.
            runs: Candidate, learning rate and seed of each.

        Returns:
            What a carrier does, or finds done.
        """
        trained, task = tuple(self._config(*run) for run in runs), Task(what, tuple(runs), self.schedule)
        gives, needs, keys = trained, tuple[dict[str, Any], ...](), tuple(map(key_of, trained))
        if what == "test":
            gives, needs, keys = tuple(self._test_config(*run) for run in runs), trained, ()
        return PackJob(self.store, gives, needs, task, lambda: self.do(task), self.count, keys)

    def do(self, task: Task) -> None:
        """Do what a job is: train or test the runs of one pack, and keep what they come to.

        Raises:
            OutOfTime: It is past the deadline.
        """
        require_time(self.deadline)
        if task.what == "test":
            return self._test(task.runs)
        one, rate_, seed = task.runs[0]
        if one.build is None:
            return self._keep(task.runs, self._edits(task.runs))
        pack_of_one, restore = one.build(rate_, seed)
        try:
            return self._keep(task.runs, pack_of_one)
        finally:
            restore()

    def _packs(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Cut runs into packs, the same ones whatever was finished before: resumed work then gives the same bits."""
        edits = [run for run in runs if run[0].config is not None]
        cut = [edits[start : start + self.pack_size] for start in range(0, len(edits), self.pack_size)]
        return cut + [[run] for run in runs if run[0].config is None]

    def _keep(self, chosen: Sequence[Run], pack: Pack) -> None:
        """Train a pack, judge its runs on the selection examples, and keep them."""
        names = ", ".join(dict.fromkeys(one.name for one, _, _ in chosen))
        self.count.tell(names)
        since = time.perf_counter()
        trained = train_pack(pack, {seed: self.data.rows(seed) for _, _, seed in chosen}, self.schedule)
        seconds = (time.perf_counter() - since) / len(chosen)
        judged = self._judged(pack, "selection")
        tested = self._judged(pack, "test") if chosen[0][0].config is None else None
        for run, (key, result, one) in enumerate(zip(chosen, trained, judged, strict=True)):
            if tested is not None:
                # Changed weights are not kept (hundreds of megabytes a run), so they are tested at once.
                self.store.put(self._test_config(*key), tested_record(tested[run], result.diverged), {})
            tensors = result.tensors if key[0].config is not None else {}
            self.store.put(self._config(*key), trained_record(result, one, seconds), tensors)
            self.count.tell(names, [key_of(self._config(*key))])

    def seconds_per_step(self, runs: Sequence[Run]) -> float:
        """Return the seconds that one step of one run takes, of runs that enter at one block; nothing is kept of it."""
        steps = 2  # after a first one, which is slower
        pack = self._edits(runs)
        data = {seed: self.data.rows(seed) for _, _, seed in runs}
        train_pack(pack, data, self.schedule, until=1)
        since = time.perf_counter()
        train_pack(pack, data, self.schedule, until=steps)
        return (time.perf_counter() - since) / (steps * len(runs))

    def tensors_of(self, run: Run) -> dict[str, Tensor]:
        """Return what a kept run trained, by ``site.name``."""
        return self.store.weights(self._config(*run))

    def testing(self, runs: Sequence[Run]) -> Stage:
        """Judge runs on the test examples, those not judged there yet, as a stage."""
        if runs:
            yield [self.job("test", own) for own in self._packs(runs)]

    def _test(self, chosen: Sequence[Run]) -> None:
        pack = self._edits(chosen)
        for run, key in enumerate(chosen):
            pack.load(run, self.store.weights(self._config(*key)))
        for key, judged in zip(chosen, self._judged(pack, "test"), strict=True):
            diverged = bool((self.store.get(self._config(*key)) or {})["diverged"])
            self.store.put(self._test_config(*key), tested_record(judged, diverged), {})

    def kept(self, run: Run) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return what is kept of a run: of its training, and of its test; None where there is nothing."""
        return self.store.get(self._config(*run)), self.store.get(self._test_config(*run))

    def know(self, run: Run, trained: Mapping[str, Any], tested: Mapping[str, Any] | None) -> None:
        """Keep what is known of a run from elsewhere, unless it is kept already.

        Args:
            run: Candidate, learning rate and seed.
            trained: What its training came to.
            tested: What its test came to, if it had one.
        """
        for config, record in ((self._config(*run), trained), (self._test_config(*run), tested)):
            if record is not None and self.store.get(config) is None:
                self.store.put(config, record, {})

    def _outcome(self, one: Candidate, choice: Choice, seeds: Sequence[int]) -> Outcome:
        chosen = choice.learning_rate
        tested = [self.store.get(self._test_config(one, chosen, seed)) or {} for seed in seeds]
        runs = [(one, tried, seeds[0]) for tried in choice.tried] + [(one, chosen, seed) for seed in seeds[1:]]
        return Outcome(
            method=one.name,
            learning_rate=chosen,
            interior=choice.interior,
            tried={f"{tried:g}": loss for tried, loss in choice.tried.items()},
            losses=tuple(float(record["loss"]) for record in tested),
            accuracies=tuple(float(record["accuracy"]) for record in tested),
            seconds=sum(float((self.store.get(self._config(*run)) or {})["seconds"]) for run in runs),
        )

    # --- packs ---

    def _edits(self, chosen: Sequence[Run]) -> EditPack:
        if self._streams is None:
            pad = pad_token(self.loaded.tokenizer, self.loaded.model)
            self._streams = FrozenStreams(self.loaded.model, self.loaded.site_map, pad)
        specs = [spec_of(one.config, rate_, seed) for one, rate_, seed in chosen if one.config is not None]
        return EditPack(self.loaded, specs, self.scales, self._streams)

    def _judged(self, pack: Pack, part: str) -> list[Judged]:
        held = self.data.held_out(part)
        return judge_pack(pack, held.sequences, held.choices, JUDGE_BATCH)

    # --- names of runs ---

    def _config(self, one: Candidate, learning_rate: float, seed: int) -> dict[str, Any]:
        """Return everything that decides the result of a run."""
        config = None if one.config is None else seeded(one.config, seed)
        sites = () if config is None else config.sites
        return {
            "model": list(model_key(self.loaded.identity)),
            "train": self.data.content_hash("train", seed),
            "selection": self.data.content_hash("selection"),
            "scales": {} if config is None or config.scale == "none" else {name: self.scales[name] for name in sites},
            "method": one.name,
            "config": None if config is None else config.to_dict(),
            "learning_rate": learning_rate,
            "seed": seed,
            **asdict(self.schedule),
        }

    def _test_config(self, one: Candidate, learning_rate: float, seed: int) -> dict[str, Any]:
        return {**self._config(one, learning_rate, seed), "test": self.data.content_hash("test")}
