"""Rank correlations and regret against scipy, slow twins and cases with a known answer."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from steerscope.experiments.agreement.agreements import agreements
from steerscope.experiments.agreement.attainable import attainable, attainable_correlation
from steerscope.experiments.agreement.correlations import partial_spearman, spearman_or_zero
from steerscope.experiments.agreement.regret import regret_of

RNG = np.random.default_rng(0)
LAYERS = np.arange(20)
DEPTH = LAYERS.astype(float)


def compare(scores, losses, baselines=("depth",)):
    return agreements(scores, losses, LAYERS, before=3.0, baselines=baselines, seed=0)


def test_partial_is_the_correlation_of_residuals():
    a, b, z = (RNG.normal(size=30) for _ in range(3))
    a, b = a + z, b + z
    ranks = [stats.rankdata(v) for v in (a, b, z)]
    left = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    assert partial_spearman(a, b, z) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)


def test_a_perfect_score_and_its_opposite():
    losses = np.stack([np.linspace(1, 2, 20) + s for s in RNG.normal(size=3) / 100], axis=1)
    mean = losses.mean(1)
    found = compare({"right": -mean, "wrong": mean, "depth": RNG.normal(size=20)}, losses)
    right, wrong = found["right"], found["wrong"]
    assert right.spearman == pytest.approx(1)
    assert right.kendall == pytest.approx(1)
    assert right.of_attainable.value == pytest.approx(1)
    assert right.regret == 0
    assert right.top3 == 3
    assert right.margin == pytest.approx(1 - found["depth"].spearman)
    assert right.margin_low > 0
    assert wrong.spearman == pytest.approx(-1)
    assert wrong.regret == pytest.approx(np.ptp(mean))
    assert wrong.regret_share == pytest.approx(np.ptp(mean) / (3 - mean.min()))
    assert wrong.top3 == 0
    assert found["depth"].margin == 0


def test_a_score_that_only_knows_depth_says_nothing_given_depth():
    losses = (DEPTH + RNG.normal(size=20))[:, None]
    found = compare({"depth": -DEPTH, "again": -(DEPTH**3)}, losses)
    assert found["again"].spearman > 0.9
    assert found["again"].partial == 0


def test_noise_has_an_interval_around_zero():
    losses = RNG.normal(size=(20, 2))
    one = compare({"noise": RNG.normal(size=20), "depth": -DEPTH}, losses)["noise"]
    assert one.low < 0 < one.high
    assert one.low <= one.spearman <= one.high


def test_diverged_runs_rank_last():
    losses = np.linspace(1, 2, 20)[:, None].copy()
    losses[0] = np.inf
    assert compare({"a": -np.linspace(1, 2, 20), "depth": DEPTH}, losses)["a"].top3 == 2


def test_margins_are_to_each_fixed_baseline_and_to_the_best():
    losses = DEPTH[:, None] + RNG.normal(size=(20, 3))
    scores = {"a": RNG.normal(size=20), "depth": -DEPTH, "other": RNG.normal(size=20)}
    found = compare(scores, losses, ("depth", "other"))
    assert set(found["a"].margins) == {"depth", "other"}
    for name, margin in found["a"].margins.items():
        assert margin.value == pytest.approx(found["a"].spearman - found[name].spearman)
        assert margin.low < margin.value < margin.high
    assert found["a"].margin == pytest.approx(found["a"].margins["depth"].value)  # the best of the two here
    # Picking the best again can only lower the difference in a resample, never raise it.
    assert found["a"].margin_high <= found["a"].margins["depth"].high + 0.05


def test_from_one_layer_nothing_is_sure():
    losses = RNG.normal(size=(6, 2))
    scores = {"a": RNG.normal(size=6), "depth": np.zeros(6)}
    one = agreements(scores, losses, np.zeros(6, dtype=int), before=3.0, baselines=("depth",), seed=0)["a"]
    assert (one.low, one.high) == (-1, 1)
    assert (one.margin_low, one.margin_high) == (-2, 2)
    assert np.isfinite([one.of_attainable.low, one.of_attainable.high]).all()


def test_attainable_is_what_the_truth_has_with_the_mean_of_seeds():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=800)
    losses = truth[:, None] + 0.8 * rng.normal(size=(800, 3))
    found = attainable(losses, np.arange(800), seed=0)
    assert found.spearman == pytest.approx(spearman_or_zero(truth, losses.mean(1)), abs=0.02)
    assert found.two_seeds == pytest.approx(spearman_or_zero(losses[:, 0], losses[:, 1]), abs=0.05)
    assert found.two_seeds < found.spearman - 0.15  # two seeds are no upper bound
    assert attainable_correlation(0.69, 2) == pytest.approx(0.904, abs=5e-4)
    assert attainable_correlation(-0.5, 2) == 0


def test_attainable_of_equal_seeds_and_of_one():
    truth = RNG.normal(size=(20, 1))
    same = attainable(np.repeat(truth, 3, axis=1), LAYERS, seed=0)
    assert same.spearman == pytest.approx(1)
    assert same.num_seeds == 3
    one = attainable(truth, LAYERS, seed=0)
    assert (one.spearman, one.low, one.two_seeds) == (None, None, None)


@pytest.mark.parametrize("first", [1, 2, 3, 5, 9])
def test_regret_is_the_mean_over_all_orders_of_tied_sites(first):
    rng = np.random.default_rng(first)
    score, losses = rng.integers(3, size=6).astype(float), rng.normal(size=6)
    regrets = []
    for order in permutations(range(6)):
        ranked = sorted(order, key=lambda i: -score[i])[:first]  # stable: ties stay in this order
        regrets.append(losses[ranked].min() - losses.min())
    assert regret_of(score, losses, first) == pytest.approx(np.mean(regrets), abs=1e-12)
