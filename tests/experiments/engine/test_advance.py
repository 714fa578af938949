"""Runs that are stopped, and go on beside other runs than before."""

from __future__ import annotations

import torch

from steerscope.experiments.engine import staged as staged_module
from steerscope.experiments.engine.loop import train_pack
from steerscope.experiments.engine.pack import EditPack
from steerscope.experiments.engine.run_state import RunState, progress_of, states_of
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.staged import StagedSweep
from steerscope.experiments.engine.store import RunStore
from tests.experiments.engine.test_pack import data_of, loaded_model, many
from tests.experiments.engine.test_sweep import Data, candidate

SCHEDULE = Schedule(steps=6, batch_size=4)


class LongData(Data):
    def rows(self, seed):
        return super().rows(seed) * 2


def the_sweep(loaded, folder, **more):
    return StagedSweep(loaded, LongData(), SCHEDULE, RunStore(folder), {}, **more)


RUNS = [
    (candidate("0.resid_post"), 1e-2, 0),
    (candidate("0.mlp_out"), 1e-2, 0),
    (candidate("1.resid_post"), 1e-2, 0),
    (candidate("1.resid_post"), 1e-1, 0),
]


def test_stopping_and_going_on_beside_other_runs_is_one_training(tmp_path):
    loaded = loaded_model()
    whole = the_sweep(loaded, tmp_path / "whole")
    for floor in (RUNS[:2], RUNS[2:]):
        whole.carried(whole.training(floor))
    staged = the_sweep(loaded, tmp_path / "staged", pack_size=2)
    first = staged.advance(RUNS, 2)
    assert all(len(losses) == 2 for losses in first)
    chosen = [RUNS[3], RUNS[1]]
    last = staged.advance(chosen, 6)
    for run, losses in zip(chosen, last, strict=True):
        kept, again = whole.kept(run)[0], staged.kept(run)[0]
        torch.testing.assert_close(list(losses), kept["train_losses"], rtol=0, atol=1e-5)
        assert abs(kept["selection_loss"] - again["selection_loss"]) < 1e-10
        for name, value in whole.store.weights(whole._config(*run)).items():
            torch.testing.assert_close(staged.store.weights(staged._config(*run))[name], value, rtol=0, atol=1e-10)
    assert staged.kept(RUNS[0]) == (None, None)  # it was stopped early, and is no result


def test_what_was_reached_is_not_trained_again(tmp_path, monkeypatch):
    loaded = loaded_model()
    the_sweep(loaded, tmp_path).advance(RUNS, 3)
    begun = []
    real = staged_module.train_pack

    def counted(*args, start=None, **kwargs):
        begun.append(0 if start is None else start.step)
        return real(*args, start=start, **kwargs)

    monkeypatch.setattr(staged_module, "train_pack", counted)
    the_sweep(loaded, tmp_path).advance(RUNS, 3)
    assert begun == []
    the_sweep(loaded, tmp_path).advance(RUNS[:1], 5)
    assert begun == [3]


def test_states_survive_a_file():
    """Of runs that differ in everything, one of them without a step of its own."""
    loaded = loaded_model()
    pack = EditPack(loaded, many())
    ended = []
    train_pack(pack, data_of(0, 1, 2), Schedule(steps=6, batch_size=4), keep=ended.append, until=2)
    states = states_of(pack, ended[-1])
    again = [RunState.of_stored(own.step, own.losses, own.stored()) for own in states]
    ours, theirs = progress_of(pack, again), ended[-1]
    assert ours.losses == theirs.losses
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert ours.optimizer["state"].keys() == theirs.optimizer["state"].keys()
    for place, own in ours.optimizer["state"].items():
        for name, value in theirs.optimizer["state"][place].items():
            assert torch.equal(own[name], value)
