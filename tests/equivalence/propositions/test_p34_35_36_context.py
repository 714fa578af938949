"""P34 to P36: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steerscope.equivalence.propositions import p34_35_36_context as context
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

ALL = by_name(context.PROPOSITIONS)
HOLDS, CORRECTED = Verdict.HOLDS, Verdict.CORRECTED
EXPECTED = {"P34": CORRECTED, "P35": HOLDS, "P36": HOLDS}
# Without a gate one patch is all there is, as published.
ON_LAYOUTS = {family: {"P34": HOLDS} for family in ("gpt2", "gpt_neox", "phi")}
MUTATIONS: list[tuple[str, str, Callable]] = [
    ("P34", "read_patch", lambda weight, a, b: torch.outer(weight @ (b - a), b) / b.square().sum()),
    ("P34", "read_patch", lambda weight, a, b: torch.outer(weight @ (b - a), a) / a.norm()),
    ("P34", "sequential_patch", lambda weight, a: weight + sum(map(context.read_patch, [weight] * 3, a, a[1:]))),
    ("P35", "read_patch", lambda weight, a, b: torch.outer(weight @ (b - a), b) / b.square().sum()),
    ("P35", "write_patch", lambda shift, m: torch.outer(shift, m) / m.norm()),
    ("P36", "context_shift", lambda with_context, without: without - with_context),
]


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize(("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}" for n, f, _ in MUTATIONS])
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context, formula, wrong)
    assert verdict(ALL[name], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), {**EXPECTED, **ON_LAYOUTS.get(family, {})}[name])


def test_the_scale_of_a_norm_behind_the_mlp_is_patched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context, "scale_patch", lambda shift, unscaled: shift)
    assert verdict(ALL["P35"], tiny_blocks("gemma2")) is Verdict.FAILS
