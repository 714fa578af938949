"""P32: verdicts on random blocks and on every layout."""

from __future__ import annotations

import pytest

from steerscope.equivalence.propositions import p32_gauge as gauge
from steerscope.equivalence.propositions.base import Verdict
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    random_blocks,
    tiny_blocks,
)

ALL = by_name(gauge.PROPOSITIONS)
HOLDS = Verdict.HOLDS
EXPECTED = {"P32": HOLDS}


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


def test_norms_are_why_steering_does_not_merge_into_weights():
    with tiny_blocks("llama").ready() as subject:
        names = [control.name for control in ALL["P32"].check(subject).controls]
    assert "the model, norms with the statistics of k" in names
    with tiny_blocks("olmo2").ready() as subject:  # no norm on what its blocks read
        names = [control.name for control in ALL["P32"].check(subject).controls]
    assert "the model, norms with the statistics of k" not in names
