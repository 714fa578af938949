"""P23 to P25: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steerscope.equivalence.propositions import p23_24_25_error_control as error_control
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

ALL = by_name(error_control.PROPOSITIONS)
EXPECTED = {"P23": Verdict.HOLDS, "P24": Verdict.HOLDS, "P25": Verdict.HOLDS}
MUTATIONS: list[tuple[str, str, Callable]] = [
    ("P23", "propagated_bound", lambda errors, lipschitz: sum(errors)),
    ("P23", "propagated_bound", lambda errors, lipschitz: sum(e * c for e, c in zip(errors, lipschitz, strict=True))),
    ("P24", "norm_bound", lambda x, y: (x - y).norm(dim=-1) / (x.norm(dim=-1) * y.norm(dim=-1)).sqrt()),
    ("P24", "norm_bound", lambda x, y: x.shape[-1] ** 0.5 * (x - y).norm(dim=-1) / y.norm(dim=-1)),
    ("P24", "normalised", lambda x, eps, centred: x / (x.square().mean(-1, keepdim=True) + 1).sqrt()),
    ("P25", "ball_lipschitz", lambda weights, activation, centre, radius, slope: 1.0),
]


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize(("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}" for n, f, _ in MUTATIONS])
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(error_control, formula, wrong)
    assert verdict(ALL[name], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])
