"""P38, P39: verdicts on random blocks and on every layout."""

from __future__ import annotations

import pytest

from steerscope.equivalence.propositions import p38_tangent, p39_coverage
from steerscope.equivalence.propositions.base import Verdict
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    random_blocks,
    tiny_blocks,
)

ALL = by_name((*p38_tangent.PROPOSITIONS, *p39_coverage.PROPOSITIONS))
HOLDS = Verdict.HOLDS
EXPECTED = {"P38": HOLDS, "P39": HOLDS}


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
