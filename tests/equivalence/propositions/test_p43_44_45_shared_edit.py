"""P43, P44, P45, one edit for all tokens: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch

from steerscope.equivalence.propositions import p43_shared_edit as shared
from steerscope.equivalence.propositions import p44_canonical as canonical
from steerscope.equivalence.propositions import p45_token_jacobians as jacobians
from steerscope.equivalence.propositions.base import Verdict
from steerscope.equivalence.propositions.subject import Subject, random_subject
from steerscope.equivalence.propositions.texts import Texts
from steerscope.equivalence.reach import unreachable_share
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    evidence,
    fingerprint,
    random_blocks,
    tiny_blocks,
    verdict,
)

MODULES = {"P43": shared, "P44": canonical, "P45": jacobians}
ALL = by_name(p for module in MODULES.values() for p in module.PROPOSITIONS)
HOLDS, FAILS, NOT_APPLICABLE = Verdict.HOLDS, Verdict.FAILS, Verdict.NOT_APPLICABLE
SANDWICH = ("gemma2", "olmo2")


@pytest.fixture
def few_draws(monkeypatch):
    """Random updates are for the number in the note: a verdict of a layout or of a wrong formula needs few of them."""
    monkeypatch.setattr(shared, "ROWS", 4000)
    monkeypatch.setattr(canonical, "ROWS", 1000)
    monkeypatch.setattr(jacobians, "DRAWS", 100)


@cache
def small_blocks() -> Subject:
    return random_subject(
        0, layers=1, hidden_size=12, intermediate_size=20, num_attention_heads=2, num_key_value_heads=1
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ALL)
def test_random_blocks(name: str, seed: int):
    subject = random_blocks(seed)
    before = fingerprint(subject)
    assert_verdict(ALL[name], subject, HOLDS)
    assert fingerprint(subject) == before


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ALL)
def test_every_layout(name: str, family: str):
    # Behind a norm on what the MLP writes every token has a matrix of its own: P45 says what P43 and P44 cannot.
    expected = NOT_APPLICABLE if family in SANDWICH and name != "P45" else HOLDS
    assert_verdict(ALL[name], tiny_blocks(family), expected)


def unsquared(shift, rho, v):
    return float((rho * (v.T @ shift).square().sum(1)).sum() / shift.square().sum())


MUTATIONS: list[tuple[str, str, Callable]] = [
    ("P43", "unreachable_share", lambda x, m, bias=False: unreachable_share(x[:-9], m[:-9], bias=bias)),
    ("P43", "unreachable_share", lambda x, m, bias=False: unreachable_share(m, x, bias=bias)),
    ("P43", "unreachable_share", lambda x, m, bias=False: unreachable_share(x, m)),
    ("P43", "held_out_share", lambda x, m, other, m2, ridge: unreachable_share(other, m2, bias=True)),
    ("P43", "isotropic_design", lambda s, out, into, salt=0: [s.draw(out, into, salt=salt + j) for j in range(2)]),
    ("P44", "reachable_share", lambda shift, rho, v: float(rho.square().mean())),
    ("P44", "reachable_share", unsquared),
    ("P44", "mean_share", lambda rho: float(rho.mean())),
    ("P44", "least_share", lambda rho: float(rho.square().median())),
    ("P44", "effective_dimension", lambda spectrum, level: float((spectrum > level).sum())),
    ("P45", "own_token_kernel", lambda z, c: z @ z.T),
    ("P45", "own_token_kernel", lambda z, c: c.flatten(1) @ c.flatten(1).T),
    ("P45", "across_token_features", lambda z, c: (c.sum(1)[:, :, None] @ z.sum(1)[:, None]).flatten(1)),
    ("P45", "across_token_features", lambda z, c: z.flatten(1)),
    ("P45", "unreachable_kernel_share", lambda basis, k: unreachable_share(basis, k)),
]  # fmt: skip


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(
    ("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}-{i}" for i, (n, f, _) in enumerate(MUTATIONS)]
)
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MODULES[name], formula, wrong)
    assert verdict(ALL[name], small_blocks()) is FAILS


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("name", ALL)
def test_the_right_formulas_hold_there(name: str):
    assert_verdict(ALL[name], small_blocks(), HOLDS)


def test_no_data_set_with_more_tokens_than_channels_says_nothing():
    ids = torch.randint(3, 48, (4, 5))
    few = replace(random_blocks(0), texts=(Texts("four texts", ids[:2], ids[2:]),))
    for proposition in ALL.values():
        found = evidence(proposition, few)
        assert "more tokens" in found.inapplicable


def test_every_data_set_of_a_subject_is_tried():
    subject = random_blocks(0)
    generator = torch.Generator().manual_seed(5)
    one, two = (torch.randint(3, 48, (24, 9), generator=generator) for _ in range(2))
    both = replace(subject, texts=(Texts("one", one[:16], one[16:]), Texts("two", two[:16], two[16:])))
    found = evidence(ALL["P44"], both)
    assert {m.name.split(",")[0] for m in found.claim} == {"one", "two"}
