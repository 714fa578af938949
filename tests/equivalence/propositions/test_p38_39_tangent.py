"""P38, P39: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steerscope.equivalence.propositions import p38_39_tangent as tangent
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

ALL = by_name(tangent.PROPOSITIONS)
HOLDS = Verdict.HOLDS
EXPECTED = {"P38": HOLDS, "P39": HOLDS}
MUTATIONS: list[tuple[str, str, Callable]] = [
    ("P38", "site_kernel", tangent.token_kernel),
    ("P38", "linear_tangent", lambda grad, read: torch.einsum("bto,bti->boi", grad, read.flip(1))),
    ("P39", "residual_bound", lambda cosine: 1 - cosine**2),
    ("P39", "left_over", lambda target, jacobian: float(target.norm())),
    ("P39", "sine_to", lambda target, jacobian: float((torch.linalg.qr(jacobian).Q.T @ target).norm() / target.norm())),
]


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize(("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}" for n, f, _ in MUTATIONS])
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tangent, formula, wrong)
    assert verdict(ALL[name], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])
