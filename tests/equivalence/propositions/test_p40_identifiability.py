"""P40: verdicts on random blocks and on every layout."""

from __future__ import annotations

import pytest
import torch

from steerscope.equivalence.propositions import p40_identifiability as identifiability
from steerscope.equivalence.propositions.base import Verdict
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    random_blocks,
    tiny_blocks,
    verdict,
)

ALL = by_name(identifiability.PROPOSITIONS)
HOLDS = Verdict.HOLDS
EXPECTED = {"P40": HOLDS}


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


def test_radius_is_the_largest_size_below_which_nothing_is_wrong():
    sizes = (1.0, 0.1, 0.01, 0.001)
    assert identifiability.first_order_radius(sizes, (0.5, 0.1, 0.01, 0.001)) == 0.1
    assert identifiability.first_order_radius(sizes, (0.01, 0.2, 0.02, 0.002)) == 0.01  # a lucky crossing far out
    assert identifiability.first_order_radius(sizes, (1.0, 1.0, 1.0, 1.0)) == 0
    assert identifiability.first_order_radius(sizes, (float("nan"),) * 4) == 0


def test_a_wrong_derivative_is_no_small_radius(monkeypatch: pytest.MonkeyPatch):
    right = torch.func.vjp
    monkeypatch.setattr(
        torch.func, "vjp", lambda f, x: (lambda y, pull: (y, lambda row: (1.3 * pull(row)[0],)))(*right(f, x))
    )
    assert verdict(ALL["P40"], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])
