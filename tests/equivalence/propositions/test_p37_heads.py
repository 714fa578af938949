"""P37: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steerscope.equivalence.propositions import p37_heads as heads
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

ALL = by_name(heads.PROPOSITIONS)
HOLDS = Verdict.HOLDS
EXPECTED = {"P37": HOLDS}
MUTATIONS: list[tuple[str, str, Callable]] = [
    # Heads interleaved instead of side by side.
    ("P37", "head_columns", lambda weight, head, count: weight.unflatten(1, (-1, count))[:, :, head]),
    ("P37", "offset_as_vector", lambda weight, offsets: weight @ offsets.roll(1, 0).flatten()),
    ("P37", "scaled_columns", lambda weight, scalings: weight * scalings.flatten()),
    ("P37", "gated_edit", lambda z, gm, m, ga, a: gm * m * z + a),
]


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize(("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}" for n, f, _ in MUTATIONS])
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heads, formula, wrong)
    assert verdict(ALL[name], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])
