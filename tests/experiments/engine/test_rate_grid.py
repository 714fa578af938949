"""The winner of the grid has a worse neighbour on both sides, wherever the search began."""

import math

import pytest

from steerscope.experiments.engine.rate_grid import HIGHEST, LOWEST, choose, rate


@pytest.mark.parametrize("best", [-9, -4, 0])
@pytest.mark.parametrize("start", [-10, -4, 1])
def test_finds_the_lowest_from_anywhere(best, start):
    tried = []

    def loss_at(value):
        tried.append(value)
        return (2 * math.log10(value) - best) ** 2

    choice = choose(loss_at, start)
    assert choice.learning_rate == rate(best)
    assert choice.interior
    assert len(tried) == len(set(tried)) == len(choice.tried)
    assert {rate(best - 1), rate(best + 1)} <= set(choice.tried)


def test_three_runs_if_the_start_is_right():
    assert len(choose(lambda value: abs(math.log10(value) + 2), -4).tried) == 3


def test_an_edge_is_said_to_be_one():
    choice = choose(lambda value: value, LOWEST + 1)
    assert choice.learning_rate == rate(LOWEST)
    assert not choice.interior
    assert not choose(lambda value: -value, HIGHEST).interior


def test_diverged_rates_lose():
    choice = choose(lambda value: math.inf if value > 0.02 else -value, -4)
    assert choice.learning_rate == 0.01
    assert choice.interior
    assert not choose(lambda value: math.inf, -4).interior
