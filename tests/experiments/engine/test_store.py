"""Runs on disk: whole or not at all."""

import math

import pytest
import torch

from steerscope import InputError
from steerscope.experiments.engine.store import RunStore, key_of


def test_a_run_comes_back(tmp_path):
    store, config = RunStore(tmp_path / "runs"), {"site": "1.mlp_out", "rate": 0.01}
    assert store.get(config) is None
    store.put(config, {"loss": 1.5, "other": math.inf}, {"U": torch.ones(2, 3)})
    assert store.get(config)["loss"] == 1.5
    assert store.get(config)["other"] == math.inf
    assert store.get({"rate": 0.01, "site": "1.mlp_out"})["config"] == config  # order is no content
    assert torch.equal(store.weights(config)["U"], torch.ones(2, 3))
    assert store.get({**config, "rate": 0.02}) is None
    assert sorted(path.suffix for path in (tmp_path / "runs").iterdir()) == [".json", ".safetensors"]


def test_a_damaged_run_is_named(tmp_path):
    store, config = RunStore(tmp_path), {"a": 1}
    store.put(config, {"loss": 1.0}, {})
    (tmp_path / f"{key_of(config)}.json").write_text('{"loss": 1')
    with pytest.raises(InputError, match=f"{key_of(config)}.json' cannot be read.*Delete that file"):
        store.get(config)


def test_nothing_is_left_by_an_interruption(tmp_path, monkeypatch):
    store, config = RunStore(tmp_path), {"a": 1}

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", stop)  # written, but not yet in place
    with pytest.raises(KeyboardInterrupt):
        store.put({"a": 1}, {"loss": 1.0}, {"U": torch.ones(2)})
    monkeypatch.undo()
    assert store.get(config) is None
