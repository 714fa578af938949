"""P21, P22, P26 to P28: verdicts on random blocks and on every layout."""

from __future__ import annotations

import pytest

from steerscope.equivalence.propositions import p21_22_oracles, p26_27_28_linear_oracles
from steerscope.equivalence.propositions.base import Verdict
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    fingerprint,
    random_blocks,
    tiny_blocks,
    verdict,
)

FILES = (p21_22_oracles, p26_27_28_linear_oracles)
ALL = by_name(proposition for file in FILES for proposition in file.PROPOSITIONS)
HOLDS, CORRECTED = Verdict.HOLDS, Verdict.CORRECTED
EXPECTED = {"P21": HOLDS, "P22": CORRECTED, "P26": HOLDS, "P27": CORRECTED, "P28": HOLDS}


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])


def test_the_model_is_left_as_it_was():
    subject = tiny_blocks("llama")
    before = fingerprint(subject)
    for proposition in ALL.values():
        verdict(proposition, subject)
    assert fingerprint(subject) == before


def test_the_static_oracle_overshoots_more_with_every_layer():
    with random_blocks(0).ready() as subject:
        overshoot = ALL["P22"].check(subject).series["overshoot"].y
    assert overshoot[0] < 1e-12  # nothing below the first layer to count twice
    assert overshoot[0] < overshoot[1] < overshoot[2]
