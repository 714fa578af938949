"""Rank correlations, intervals, regret and ceiling, against scipy and against cases with a known answer."""

import numpy as np
import pytest
from scipy import stats

from steerscope.analysis.scoring.intervals import spearman
from steerscope.experiments.validation.agreement import (
    RESAMPLES,
    agreements,
    ceiling,
    partial_spearman,
)

RNG = np.random.default_rng(0)
DEPTH = np.arange(20.0)


def compare(scores, losses, baselines=("depth",)):
    return agreements(scores, losses, DEPTH, before=3.0, baselines=baselines, seed=0)


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


def test_the_ceiling_is_the_agreement_of_seeds():
    truth = RNG.normal(size=(20, 1))
    same = ceiling(np.repeat(truth, 3, axis=1), DEPTH, seed=0)
    assert same.spearman == pytest.approx(1)
    assert same.num_pairs == 3
    noise = ceiling(RNG.normal(size=(20, 3)), DEPTH, seed=0)
    assert abs(noise.spearman) < 0.5
    assert noise.low < 0.5
    assert np.isnan(ceiling(truth, DEPTH, seed=0).spearman)


def test_intervals_are_those_of_the_resamples_one_by_one():
    rng = np.random.default_rng(4)
    score, losses, depth = rng.normal(size=9), rng.normal(size=(9, 3)), np.repeat(np.arange(3.0), 3)
    found = agreements({"x": score}, losses, depth, before=3.0, baselines=(), seed=5)["x"]
    draw = np.random.default_rng(5)
    plain, given = [], []
    for _ in range(RESAMPLES):
        i, s = draw.integers(9, size=9), draw.integers(3, size=3)
        outcome = -losses[np.ix_(i, s)].mean(1)
        plain.append(spearman(score[i], outcome) or 0.0)
        given.append(partial_spearman(score[i], outcome, depth[i]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=1e-12)
    expected = tuple(np.percentile(given, [2.5, 97.5]))
    assert (found.partial_low, found.partial_high) == pytest.approx(expected, abs=1e-12)
