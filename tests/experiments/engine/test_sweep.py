"""A sweep: rates searched together, seeds, tests, and work that is not done twice."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import pytest
import torch

from steerscope import SteeringConfig
from steerscope.cli.progress import Log
from steerscope.experiments.engine import EditPack, RunSpec, train_pack
from steerscope.experiments.engine import sweep as sweep_module
from steerscope.experiments.engine.candidate import Candidate
from steerscope.experiments.engine.held_out import HeldOut
from steerscope.experiments.engine.judge import judge_pack
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.rate_grid import HIGHEST, LOWEST, choice_among, choose, next_places, rate
from steerscope.experiments.engine.run_count import RunCount
from steerscope.experiments.engine.run_records import spec_of
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.sweep import Sweep
from steerscope.experiments.training.data import training_rows
from tests.experiments.engine.test_pack import loaded_model, lora_of, sequences

SCHEDULE = Schedule(steps=3, batch_size=4)


class Memory:
    """A store that counts what is put into it."""

    def __init__(self):
        self.kept, self.puts = {}, []

    def get(self, config):
        return self.kept.get(repr(sorted(config.items())), (None,))[0]

    def put(self, config, record, weights):
        self.kept[repr(sorted(config.items()))] = (dict(record), dict(weights))
        self.puts.append(config)

    def weights(self, config):
        return self.kept[repr(sorted(config.items()))][1]


@dataclass
class Data:
    asked: list = field(default_factory=list)

    def rows(self, seed):
        return training_rows(sequences(), SCHEDULE.steps, SCHEDULE.batch_size, seed)

    def held_out(self, part):
        self.asked.append(part)
        return HeldOut(tuple(sequences()[:8] if part == "selection" else sequences()[8:]), None)

    def content_hash(self, part, seed=0):
        return f"{part} {seed}"


def candidate(site, start=-4, **config):
    fixed = {"family": "linear", "rank": 2, "dtype": "float64"}
    return Candidate(site, SteeringConfig(sites=site, **(fixed | config)), start, site.split(".")[1])


CANDIDATES = (candidate("1.resid_post"), candidate("0.mlp_out"), candidate("1.mlp_out"))


def swept(loaded, store, candidates=CANDIDATES, seeds=(0, 1), **more):
    return Sweep(loaded, Data(), SCHEDULE, store, {}, **more).run(candidates, seeds)


def test_an_outcome_is_that_of_each_run_alone():
    loaded = loaded_model()
    found = swept(loaded, Memory())
    assert [one.method for one in found] == [one.name for one in CANDIDATES]
    for one, outcome in zip(CANDIDATES, found, strict=True):
        assert outcome.tried[f"{outcome.learning_rate:g}"] == min(outcome.tried.values())
        for place, seed in enumerate((0, 1)):
            pack = EditPack(loaded, [spec_of(one.config, outcome.learning_rate, seed)])
            train_pack(pack, {seed: Data().rows(seed)}, SCHEDULE)
            judged = judge_pack(pack, Data().held_out("test").sequences)[0]
            assert outcome.losses[place] == pytest.approx(judged.loss, abs=1e-9)
            assert outcome.accuracies[place] == judged.accuracy
        assert outcome.losses[0] != outcome.losses[1]


def test_pack_size_and_order_change_nothing():
    loaded = loaded_model()
    expected = {one.method: one for one in swept(loaded, Memory())}
    for size, order in ((1, CANDIDATES[::-1]), (7, CANDIDATES)):
        for one in swept(loaded, Memory(), order, pack_size=size):
            other = expected[one.method]
            assert one.learning_rate == other.learning_rate
            assert one.losses == pytest.approx(other.losses, abs=1e-9)
            assert one.tried == pytest.approx(other.tried, abs=1e-9)


def test_what_is_kept_is_not_trained_again(monkeypatch):
    loaded, store = loaded_model(), Memory()
    whole = swept(loaded, Memory())
    calls = []

    def counted(pack, *given, **more):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(pack.specs))
        return train_pack(pack, *given, **more)

    monkeypatch.setattr(sweep_module, "train_pack", counted)
    with pytest.raises(KeyboardInterrupt):
        swept(loaded, store)
    assert len(store.puts) == sum(calls)
    monkeypatch.setattr(sweep_module, "train_pack", train_pack)
    again = swept(loaded, store)
    assert [(one.losses, one.tried) for one in again] == [(one.losses, one.tried) for one in whole], "not to the bit"
    assert len(store.puts) == len({repr(sorted(config.items())) for config in store.puts})
    before = len(store.puts)
    assert swept(loaded, store) == again
    assert len(store.puts) == before


def test_what_was_kept_before_is_not_told_as_work_and_nothing_is_done_before_its_end(monkeypatch, capsys):
    """Ten seconds a run: what is left is said by the runs that were trained, however many were found done."""
    loaded, store, now, packs = loaded_model(), Memory(), [0.0], []

    def timed(pack, *given, **more):
        packs.append(len(pack.specs))
        now[0] += 10 * len(pack.specs)
        return train_pack(pack, *given, **more)

    swept(loaded, store, seeds=(0,))
    kept = len(store.puts) - len(CANDIDATES)  # without tests
    monkeypatch.setattr(sweep_module, "train_pack", timed)
    told, log = [], Log(lambda: now[0])

    def tell(names, done, total):
        told.append((done, total))
        log(f"train: {names}", done, total)

    seeds = tuple(range(9))
    swept(loaded, store, seeds=seeds, pack_size=1, progress=tell)
    added = len(CANDIDATES) * (len(seeds) - 1)
    assert sum(packs) == added
    assert told[0][0] == kept
    assert [done for done, _ in told if done == told[-1][0]] == [told[-1][0]], "done, and done again"
    assert told[-1] == (kept + added, kept + added)
    quarters = [line for line in capsys.readouterr().err.splitlines() if "left" in line]
    assert quarters
    for line in quarters:
        share, left = (int(part) for part in re.search(r"(\d+)%, about (\d+) ", line).groups())
        seconds = left * (60 if "min" in line else 1)
        assert seconds == pytest.approx(10 * (1 - share / 100) * (kept + added), abs=31)


def test_runs_kept_among_others_leave_the_total_and_a_search_raises_it():
    count, told = RunCount(lambda *call: told.append(call)), []
    count.expect(10)
    count.keep("stuv")
    assert told == []
    count.tell("a")
    count.tell("a", "a")
    count.keep("a")
    count.keep("wx")
    count.more(1)
    count.tell("b", "bcde")
    assert told == [("a", 4, 10), ("a", 5, 10), ("", 5, 8), ("b", 9, 9)]


def test_a_method_that_trains_weights_is_a_pack_of_one():
    loaded = loaded_model()
    restored = []

    def build(learning_rate, seed):
        model = lora_of(loaded.model)
        spec = RunSpec(SteeringConfig(sites="resid_post"), learning_rate, seed)
        return ModelPack(model, spec, 2), lambda: restored.append(model.unload())

    ids = torch.tensor([sequences()[0].ids])
    before = loaded.model(input_ids=ids).logits
    found = swept(loaded, Memory(), [Candidate("lora", None, -4, "lora", build), CANDIDATES[0]])
    assert all(math.isfinite(loss) for loss in found[0].losses)
    assert found[0].losses != found[1].losses
    assert len(restored) == len(found[0].tried) + 1
    assert torch.equal(loaded.model(input_ids=ids).logits, before)


def test_the_untrained_model_is_judged_as_it_is():
    loaded = loaded_model()
    found = Sweep(loaded, Data(), SCHEDULE, Memory(), {}).untrained()
    with torch.no_grad():
        for row, loss in zip(Data().held_out("test").sequences, found.losses, strict=True):
            logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            places = range(row.first_target, len(row.ids))
            assert float(loss) == pytest.approx(-sum(float(logits[i - 1, row.ids[i]]) for i in places), rel=1e-9)


@pytest.mark.parametrize("best", [-11, -7, -4, 0, 1])
@pytest.mark.parametrize("start", [-8, -4, 0])
def test_the_walk_ends_with_both_neighbours_tried(best, start):
    def loss(place):
        return abs(place - best) + 0.1

    tried = {}
    while places := next_places(tried, start):
        tried |= {place: loss(place) for place in places}
    assert choice_among(tried).interior
    assert choice_among(tried).learning_rate == rate(best)
    one_by_one = choose(lambda value: loss(round(2 * math.log10(value))), start)
    assert one_by_one.learning_rate == rate(best)
    assert one_by_one.interior
    short = choose(lambda value: loss(round(2 * math.log10(value))), start, tries=3)
    assert len(short.tried) == 3
    assert short.interior == (best == start)


def test_the_edge_of_the_grid_is_not_interior():
    tried = {}
    while places := next_places(tried, 0):
        tried |= {place: -float(place) for place in places}
    assert max(tried) == HIGHEST
    assert not choice_among(tried).interior
    assert not choice_among(dict.fromkeys((-3, -2, -1), math.inf)).interior
    assert LOWEST < -3
