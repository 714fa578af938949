"""Two kinds of site, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest

from studies.kinds_compared import kinds_compared


def _losses(
    gaps: list[float], noise: float = 0.002, seeds: int = 4, seed: int = 0
) -> dict[tuple[int, str], np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for layer, gap in enumerate(gaps):
        batch = rng.normal(0, 0.1, seeds)  # what a seed's batches do to every kind of a layer
        found[layer, "a"] = 1.0 + layer / 10 + batch + rng.normal(0, noise, seeds)
        found[layer, "b"] = 1.0 + layer / 10 - gap + batch + rng.normal(0, noise, seeds)
    return found


def test_differences_are_taken_layer_by_layer_and_seed_by_seed():
    found = kinds_compared(_losses([0.1, 0.12, 0.08, 0.11, -0.1, 0.0]), "a", "b")
    assert found.num_layers == 6
    assert (found.first_better, found.second_better) == (1, 4)  # and one within noise
    assert found.difference.value == pytest.approx(np.mean([0.1, 0.12, 0.08, 0.11, -0.1, 0.0]), abs=0.003)
    assert found.median == pytest.approx(0.09, abs=0.005)
    assert found.difference.low < 0 < found.difference.high  # one layer of six goes the other way


def test_the_other_way_round_is_the_same_with_the_sign_changed():
    losses = _losses([0.1, 0.12, 0.08, 0.11])
    there, back = kinds_compared(losses, "a", "b"), kinds_compared(losses, "b", "a")
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert there.difference.low > 0.05
    assert (there.first_better, there.second_better) == (back.second_better, back.first_better)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        gaps = rng.normal(0.05, 0.04, 10)
        found = kinds_compared(_losses([*gaps], noise=0.01, seed=trial), "a", "b")
        held += found.difference.low <= 0.05 <= found.difference.high
    assert 180 <= held <= 199


def test_layers_without_both_kinds_are_left_out_and_a_diverged_run_is_worst():
    losses = _losses([0.1, 0.1, 0.1])
    del losses[0, "b"]
    assert kinds_compared(losses, "a", "b").num_layers == 2
    losses[1, "b"][0] = np.inf
    assert kinds_compared(losses, "a", "b").difference.value < 0.1
    del losses[1, "b"]
    assert kinds_compared(losses, "a", "b") is None
