"""Intervals over layers: against slow twins, and how often they hold the truth of made-up layers."""

import numpy as np
import pytest
from scipy import stats

from steerscope.experiments.agreement.across_and_within import across_and_within
from steerscope.experiments.agreement.agreements import agreements
from steerscope.experiments.agreement.attainable import attainable, attainable_correlation
from steerscope.experiments.agreement.correlations import partial_spearman, spearman_or_zero
from steerscope.experiments.agreement.layer_bootstrap import LayerBootstrap, interval_half, without_each_seed
from steerscope.experiments.agreement.layer_pairs import layer_pairs, pairs_right


def made_up(rng, num_layers, kinds, seeds=3, common=0.0):
    """Return layers, a score that knows layers and kinds in part, a plain one, and losses with shared layer effects."""
    layers = np.repeat(np.arange(num_layers), kinds)
    n, place = len(layers), layers / (num_layers - 1)
    truth = 0.6 * rng.normal(size=num_layers)[layers] + 0.6 * rng.normal(size=n) - 1.5 * place
    score = 0.7 * truth + 0.5 * rng.normal(size=num_layers)[layers] + 0.5 * rng.normal(size=n)
    plain = -place + 0.3 * rng.normal(size=n)
    noise = 0.4 * rng.normal(size=(n, seeds)) + common * rng.normal(size=(num_layers, seeds))[layers]
    return layers, {"score": score, "plain": plain}, noise - truth[:, None]


def test_resamples_are_whole_layers_and_their_statistics_are_those_of_repeated_sites():
    rng = np.random.default_rng(4)
    layers = np.array([0, 0, 3, 3, 3, 7, 9, 9])
    score, other = rng.integers(4, size=8).astype(float), rng.normal(size=8)
    bootstrap = LayerBootstrap(layers, 5, resamples=50)
    quick = bootstrap.correlations(bootstrap.ranks(score), bootstrap.ranks(other))
    tau = bootstrap.kendall(score, other)
    assert len(np.unique(bootstrap.weights, axis=0)) > 10
    for row, weights in enumerate(bootstrap.weights):
        assert all(np.ptp(weights[layers == layer]) == 0 for layer in layers)
        assert sum(weights[np.flatnonzero(layers == layer)[0]] for layer in np.unique(layers)) == 4
        drawn = np.repeat(np.arange(8), weights.astype(int))
        assert quick[row] == pytest.approx(spearman_or_zero(score[drawn], other[drawn]), abs=1e-12)
        slow = np.nan_to_num(stats.kendalltau(score[drawn], other[drawn]).statistic)
        assert tau[row] == pytest.approx(slow, abs=1e-12)


def test_the_interval_is_that_of_its_formula():
    rng = np.random.default_rng(2)
    layers, scores, losses = made_up(rng, 6, 3, seeds=1)
    found = agreements(scores, losses, layers, before=3.0, baselines=("plain",), seed=9)["score"]
    bootstrap, drawn, given = LayerBootstrap(layers, 9), [], []
    for weights in bootstrap.weights:
        sites = np.repeat(np.arange(18), weights.astype(int))
        ranks = stats.rankdata([scores["score"][sites], -losses[sites, 0], layers[sites]], axis=1)
        with np.errstate(invalid="ignore"):  # one layer six times: constant, and nothing is taken out
            (_, xy, xz), (_, _, yz), _ = np.nan_to_num(np.corrcoef(ranks))
        drawn.append(xy)
        given.append((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))
    for value, low, high, own in (
        (found.spearman, found.low, found.high, drawn),
        (found.partial, found.partial_low, found.partial_high, given),
    ):
        half = stats.t.ppf(0.975, 5) * np.std(own) * np.sqrt(6 / 5) / (1 - value**2)
        assert (low, high) == pytest.approx(tuple(np.tanh(np.arctanh(value) + half * np.array([-1, 1]))), abs=1e-9)


def test_degrees_of_freedom_are_satterthwaites():
    assert interval_half([(4.0, 5)]) == pytest.approx(2 * stats.t.ppf(0.975, 5))
    assert interval_half([(2.0, 5), (2.0, 5)]) == pytest.approx(2 * stats.t.ppf(0.975, 10))
    assert interval_half([(0.0, 5)]) == 0


def test_what_seeds_do_to_all_layers_widens_intervals_and_what_they_do_to_one_does_not():
    rng = np.random.default_rng(0)
    layers = np.repeat(np.arange(12), 4)
    tilt = np.array([-1.0, 0.0, 1.0])  # one seed likes high layers, one low ones
    noise = 0.02 * rng.normal(size=(48, 3))
    score, base = -layers + 2 * rng.normal(size=48), (layers / 40)[:, None]

    def width(losses):
        found = agreements({"score": score}, losses, layers, before=3.0, baselines=(), seed=0)["score"]
        return found.high - found.low

    lone = width(base + noise)
    assert width(base + noise + tilt * (layers[:, None] - 5.5) / 15) > 1.5 * lone
    shuffled = without_each_seed(base + noise, layers, 0)
    assert len(shuffled) == 17
    assert all(
        np.allclose(sum(own).sum(1), 2 * (base + noise).sum(1)) for own in shuffled
    )  # every seed is left out once


@pytest.mark.parametrize(("num_layers", "kinds", "common"), [(10, 4, 0.0), (12, 3, 0.4)])
def test_intervals_hold_the_truth_as_often_as_they_claim(num_layers, kinds, common):
    layers, scores, losses = made_up(np.random.default_rng(1), 1500, kinds, common=common)
    mean = -losses.mean(1)
    truth = {
        "spearman": spearman_or_zero(scores["score"], mean),
        "partial": partial_spearman(scores["score"], mean, layers.astype(float)),
        "kendall": float(stats.kendalltau(scores["score"], mean).statistic),
        "margin": spearman_or_zero(scores["score"], mean) - spearman_or_zero(scores["plain"], mean),
    }
    if common == 0:
        pairs = [spearman_or_zero(losses[:, a], losses[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        truth["attainable"] = attainable_correlation(float(np.mean(pairs)), 3)
    rounds, held, width = 30, dict.fromkeys(truth, 0), dict.fromkeys(truth, 0.0)
    for seed in range(rounds):
        layers, scores, losses = made_up(np.random.default_rng(100 + seed), num_layers, kinds, common=common)
        found = agreements(scores, losses, layers, before=3.0, baselines=("plain",), seed=seed)["score"]
        limits = {
            "spearman": (found.low, found.high),
            "partial": (found.partial_low, found.partial_high),
            "kendall": (found.kendall_low, found.kendall_high),
            "margin": (found.margins["plain"].low, found.margins["plain"].high),
        }
        if common == 0:
            reached = attainable(losses, layers, seed=seed)
            limits["attainable"] = (reached.low, reached.high)
        for name, (low, high) in limits.items():
            held[name] += low <= truth[name] <= high
            width[name] += (high - low) / rounds
    # Fewer than 25 of 30 has a chance below half a percent where an interval is right.
    assert min(held.values()) >= 25, held
    assert max(width.values()) < 1.1, width  # and not by holding everything


def pairs_made_up(rng, num_layers, kinds):
    """Return losses whose layers differ much, and a score that knows kinds in seven layers of ten."""
    layers = np.repeat(np.arange(num_layers), kinds)
    truth = np.linspace(0, 0.3, kinds)[np.tile(np.arange(kinds), num_layers)] + 0.2 * rng.normal(size=len(layers))
    knows = np.where(rng.random(num_layers) < 0.7, 1.0, -0.3)[layers]
    score = -knows * truth + 0.2 * rng.normal(size=len(layers))
    losses = truth + rng.normal(size=num_layers)[layers]
    return layers, score, losses[:, None] + 0.05 * rng.normal(size=(len(layers), 3))


def test_shares_of_pairs_hold_the_truth_as_often_as_they_claim():
    layers, score, losses = pairs_made_up(np.random.default_rng(1), 1000, 5)
    fixed = -np.tile(np.arange(5.0), 1000)
    whole = pairs_right(score, layer_pairs(losses, layers), {"kind": fixed})
    rounds, held, over = 150, 0, 0
    for seed in range(rounds):
        layers, score, losses = pairs_made_up(np.random.default_rng(50 + seed), 10, 5)
        own = pairs_right(score, layer_pairs(losses, layers), {"kind": -np.tile(np.arange(5.0), 10)})
        held += own.share.low <= whole.share.value <= own.share.high
        over += own.over["kind"].low <= whole.over["kind"].value <= own.over["kind"].high
        assert own.share.high - own.share.low < 0.6
    # Fewer than 134 of 150 has a chance of half a percent where an interval is right.
    assert min(held, over) >= 134, (held, over)


def test_pairs_by_hand():
    losses = np.array([[1.0, 1.1], [1.5, 1.6], [1.01, 1.1], [2.0, 2.0], [9.0, 9.0], [1.0, 1.0]])
    layers = np.array([0, 0, 0, 1, 1, 2])
    pairs = layer_pairs(losses, layers)
    # 0 against 2 differ by 0.005, less than LEAST; layer 2 has one site.
    assert pairs.num_all == 4
    assert sorted(zip(pairs.better, pairs.worse, strict=True)) == [(0, 1), (2, 1), (3, 4)]
    found = pairs_right(np.array([1.0, 0.5, 0.5, 0.0, 3.0, 9.0]), pairs, {})
    assert (found.num_right, found.num_pairs, found.num_layers) == (1.5, 3, 2)  # a tie is half right
    assert found.share.value == pytest.approx(0.5)


def test_a_pair_within_noise_does_not_count():
    rng = np.random.default_rng(0)
    sure = np.array([[1.0, 1.0, 1.0], [1.2, 1.2, 1.2]])
    noisy = np.array([[1.0, 1.0, 1.0], [1.6, 0.6, 1.4]])
    assert len(layer_pairs(sure, np.zeros(2, dtype=int))) == 1
    assert len(layer_pairs(noisy, np.zeros(2, dtype=int))) == 0
    assert len(layer_pairs(sure[:, :1], np.zeros(2, dtype=int))) == 1  # from one seed by size alone
    # Equal sites with noise: few pairs pass by chance.
    many = layer_pairs(1 + 0.1 * rng.normal(size=(200, 3)), np.repeat(np.arange(25), 8))
    assert len(many) / many.num_all < 0.1


def test_all_right_is_not_certainty():
    layers = np.repeat(np.arange(4), 3)
    losses = np.tile([1.0, 1.2, 1.4], 4)[:, None] + np.zeros(3)
    found = pairs_right(-losses[:, 0], layer_pairs(losses, layers), {"against": losses[:, 0]})
    assert found.share.value == 1
    assert found.share.low < 0.8
    assert found.over["against"].value == 1
    empty = pairs_right(-losses[:, 0], layer_pairs(losses[::3], layers[::3]), {})
    assert empty.share is None


def test_j_is_half_of_rho_and_of_pairs_beyond_chance():
    rng = np.random.default_rng(7)
    layers, score, losses = pairs_made_up(rng, 6, 4)
    scores = {"score": score, "kind": -np.tile(np.arange(4.0), 6)}
    pairs = layer_pairs(losses[:, :1], layers)
    found = across_and_within(scores, losses[:, :1], layers, pairs, fixed=("kind",), seed=3)

    def slow(name, sites):
        within = [
            np.sign(scores[name][a] - scores[name][b])
            for a, b in zip(pairs.better, pairs.worse, strict=True)
            for _ in range(int((np.array(sites) == a).sum()))
        ]
        return (spearman_or_zero(scores[name][sites], -losses[sites, 0]) + np.mean(within)) / 2

    everything = list(range(24))
    assert found["score"].value.value == pytest.approx(slow("score", everything))
    gain = slow("score", everything) - slow("kind", everything)
    assert found["score"].margins["kind"].value == pytest.approx(gain)
    assert found["kind"].margins == {}
    draws = [np.repeat(everything, weights.astype(int)) for weights in LayerBootstrap(layers, 3).weights[:400]]
    error = np.std([slow("score", sites) - slow("kind", sites) for sites in draws]) * np.sqrt(6 / 5)
    half = found["score"].margins["kind"].high - gain
    assert half == pytest.approx(stats.t.ppf(0.975, 5) * error, rel=0.15)  # 400 of the 2,000 resamples


def test_j_holds_the_truth_as_often_as_it_claims():
    def judged(rng, num_layers, seed):
        layers, score, losses = pairs_made_up(rng, num_layers, 4)
        scores = {"score": score, "kind": -np.tile(np.arange(4.0), num_layers)}
        pairs = layer_pairs(losses, layers)
        if seed is None:
            within = {name: 2 * pairs_right(own, pairs, {}).share.value - 1 for name, own in scores.items()}
            return {name: (spearman_or_zero(own, -losses.mean(1)) + within[name]) / 2 for name, own in scores.items()}
        return across_and_within(scores, losses, layers, pairs, fixed=("kind",), seed=seed)["score"]

    whole = judged(np.random.default_rng(1), 1000, None)
    held = over = 0
    for seed in range(60):
        found = judged(np.random.default_rng(200 + seed), 10, seed)
        held += found.value.low <= whole["score"] <= found.value.high
        margin = found.margins["kind"]
        over += margin.low <= whole["score"] - whole["kind"] <= margin.high
        assert found.value.high - found.value.low < 1.2
    # Fewer than 52 of 60 has a chance below 1% where an interval is right.
    assert min(held, over) >= 52, (held, over)
