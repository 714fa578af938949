"""Searches replayed from a table: costs and regrets against slow replays by hand."""

from dataclasses import replace

import numpy as np
import pytest

from steerscope import InputError
from steerscope.experiments.site_tables.common import common_outcomes
from steerscope.experiments.site_tables.search_curves import SMOOTHED, search_curves
from steerscope.reports.figure_style import figure_bytes
from steerscope.reports.site_tables.figures import plot_foreseen, plot_losses, plot_search
from tests.experiments.site_tables.tiny import STEPS, made_up, truth_of


@pytest.fixture(scope="module")
def table():
    return made_up()


@pytest.fixture(scope="module")
def curves(table):
    return {curve.name: curve.points for curve in search_curves(table)}


def test_the_searches_are_there_and_their_costs_rise(curves):
    assert list(curves) == ["random order", "depth", "halving", "right", "right + halving"]
    for points in curves.values():
        costs = [point.cost for point in points]
        assert costs == sorted(costs)
        assert all(point.loss.low <= point.loss.value <= point.loss.high for point in points)
        assert all(point.loss.value >= 0 and point.accuracy.value >= 0 for point in points)


def test_training_every_site_costs_one_and_finds_the_best(curves, table):
    losses = common_outcomes(table).losses.mean(1)
    for name in ("random order", "depth", "right"):
        last = curves[name][-1]
        assert last.cost == pytest.approx(1)
        assert last.loss.value < np.sort(losses)[2] - losses.min()  # chosen by selection examples, which have noise


def test_one_random_site_has_the_mean_regret_and_a_perfect_score_has_none(curves, table):
    losses = common_outcomes(table).losses.mean(1)
    assert curves["random order"][0].loss.value == pytest.approx((losses - losses.min()).mean(), rel=0.3)
    assert curves["right"][0].loss.value == pytest.approx(0, abs=0.02)
    # A site of the lowest layer runs through all six blocks, the mean site through 3.5.
    assert curves["right"][0].cost == pytest.approx(6 / (24 * 3.5))


def test_halving_by_hand(table):
    """The same halving, written down slowly, for one seed and one beginning."""
    names = list(truth_of())
    steps, cost, done, alive = 4, 0.0, 0, list(names)
    found = table.trajectories(0)
    while True:
        for name in alive:
            cost += (steps - done) * (6 - int(name[0])) / 6
        done = steps
        if steps == STEPS:
            break
        seen = {name: np.mean(found[name][:steps][-SMOOTHED:]) for name in alive}
        alive = sorted(alive, key=lambda name: seen[name])[: (len(alive) + 1) // 2]
        steps = min(2 * steps, STEPS)
    by_name = {str(one.site): one for one in common_outcomes(table).outcomes}
    chosen = min(alive, key=lambda name: by_name[name].selection_losses[0])
    only = replace(table, runs=tuple(run for run in table.runs if run.seed == 0))
    again = {curve.name: curve.points for curve in search_curves(only)}
    point = again["halving"][1]  # the beginning at an eighth of 32 steps
    assert point.cost == pytest.approx(cost / (STEPS * 24 * 3.5 / 6))
    single = {str(one.site): one.losses[0] for one in by_name.values()}
    assert point.loss.value == pytest.approx(single[chosen] - min(single.values()))


def test_halving_from_a_good_score_is_cheaper_and_as_good(curves):
    for with_score, alone in zip(curves["right + halving"], curves["halving"], strict=True):
        assert with_score.cost < alone.cost
        assert with_score.loss.value <= alone.loss.value + 0.02


def test_figures_are_drawn_and_repeat(table, curves):
    for make in (
        lambda: plot_losses(table),
        lambda: plot_foreseen(table, "right"),
        lambda: plot_search(table, search_curves(table)),
    ):
        first = figure_bytes(make(), "png")
        assert first == figure_bytes(make(), "png")
        assert len(first) > 10_000
    lines = plot_search(table, search_curves(table)).axes[0].lines
    assert list(lines[3].get_ydata()) == [point.loss.value for point in curves["right"]]
    with pytest.raises(InputError, match="has no score 'none'; it has right"):
        plot_foreseen(table, "none")
    with pytest.raises(InputError, match="got 0 curves"):
        plot_search(table, [])
