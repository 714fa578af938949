"""P42: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steerscope.equivalence.propositions import p42_arithmetic as arithmetic
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

ALL = by_name(arithmetic.PROPOSITIONS)
HOLDS = Verdict.HOLDS
EXPECTED = {"P42": HOLDS}
MUTATIONS: list[tuple[str, str, Callable]] = [
    ("P42", "mixed_term", lambda both, first, second, neither: both - first - second),
    ("P42", "mixed_term", lambda both, first, second, neither: both - first),
    (
        "P42",
        "tangent_shift",
        lambda adapted, a, b: adapted(torch.tensor(a), torch.tensor(b)) - adapted(*torch.zeros(2)),
    ),
]


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize(("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}" for n, f, _ in MUTATIONS])
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arithmetic, formula, wrong)
    assert verdict(ALL[name], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])
