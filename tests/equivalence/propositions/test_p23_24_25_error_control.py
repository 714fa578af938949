"""P23 to P25: verdicts on random blocks and on every layout."""

from __future__ import annotations

import pytest

from steerscope.equivalence.propositions import p23_propagation, p24_25_lipschitz
from steerscope.equivalence.propositions.base import Verdict
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    random_blocks,
    tiny_blocks,
)

ALL = by_name((*p23_propagation.PROPOSITIONS, *p24_25_lipschitz.PROPOSITIONS))
EXPECTED = {"P23": Verdict.HOLDS, "P24": Verdict.HOLDS, "P25": Verdict.HOLDS}


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
