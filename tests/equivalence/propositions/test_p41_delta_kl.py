"""P41: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steerscope.equivalence.propositions import p41_delta_kl as kl
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

ALL = by_name(kl.PROPOSITIONS)
HOLDS = Verdict.HOLDS
EXPECTED = {"P41": HOLDS}
MUTATIONS: list[tuple[str, str, Callable]] = [
    ("P41", "divergence", lambda p, q: (q.softmax(-1) * (q.log_softmax(-1) - p.log_softmax(-1))).sum(-1).mean()),
    ("P41", "divergence_slope", kl.reversed_slope),
    ("P41", "delta_kl", lambda steered, base, tuned: kl.divergence(steered, base)),
    ("P41", "oracle_shift", lambda tuned, base: base - tuned),
]


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize(("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}" for n, f, _ in MUTATIONS])
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kl, formula, wrong)
    assert verdict(ALL[name], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])
