"""P34 to P36: verdicts on random blocks and on every layout."""

from __future__ import annotations

import pytest

from steerscope.equivalence.propositions import p34_35_36_context as context
from steerscope.equivalence.propositions.base import Verdict
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    random_blocks,
    tiny_blocks,
)

ALL = by_name(context.PROPOSITIONS)
HOLDS, CORRECTED = Verdict.HOLDS, Verdict.CORRECTED
EXPECTED = {"P34": CORRECTED, "P35": HOLDS, "P36": HOLDS}
# Without a gate one patch is all there is, as published.
ON_LAYOUTS = {family: {"P34": HOLDS} for family in ("gpt2", "gpt_neox", "phi")}


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), {**EXPECTED, **ON_LAYOUTS.get(family, {})}[name])
