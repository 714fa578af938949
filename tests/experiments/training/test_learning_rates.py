"""A search within a budget."""

from __future__ import annotations

import math

import pytest

from steerscope.experiments.engine.rate_grid import choose, rate


def valley(bottom: int):
    calls = []

    def loss_at(learning_rate: float) -> float:
        calls.append(learning_rate)
        return abs(math.log10(learning_rate) * 2 - bottom)

    return loss_at, calls


@pytest.mark.parametrize(("bottom", "tries", "found", "interior", "count"), [
    (-6, 7, -6, True, 3),
    (-4, 7, -4, True, 5),
    (-9, 7, -9, True, 6),
    (-4, 5, -4, True, 5),
    (-4, 4, -4, False, 4),
    (0, 4, -4, False, 4),
])  # fmt: skip
def test_the_walk_stops_at_an_interior_winner_or_when_the_budget_is_spent(bottom, tries, found, interior, count):
    loss_at, calls = valley(bottom)
    choice = choose(loss_at, -6, tries)
    assert (choice.learning_rate, choice.interior, len(calls)) == (rate(found), interior, count)
    assert set(choice.tried) == set(calls)
    assert list(choice.tried) == sorted(choice.tried)


def test_a_winner_must_be_finite():
    assert not choose(lambda _: math.inf, -6, 7).interior
    assert not choose(lambda _: math.inf, -6, 3).interior
