"""P29 to P31: verdicts on random and tiny blocks."""

import pytest

from steerscope.equivalence.propositions import p29_30_31_steering_forms as steering_forms
from tests.equivalence.propositions.trials import (
    FAMILIES,
    HOLDS,
    NOT_APPLICABLE,
    SEEDS,
    by_number,
    evidence,
    random_blocks,
    tiny_blocks,
    verdicts,
)

ALL = {29: HOLDS, 30: HOLDS, 31: HOLDS}
POST_NORM = {**ALL, 31: NOT_APPLICABLE}
EXPECTED = {family: POST_NORM if family in ("gemma2", "olmo2") else ALL for family in FAMILIES}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed):
    assert verdicts(steering_forms.PROPOSITIONS, random_blocks(seed)) == ALL


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts(family):
    assert verdicts(steering_forms.PROPOSITIONS, tiny_blocks(family)) == EXPECTED[family]


def test_updating_the_attention_writer_is_harmless_only_in_parallel_blocks():
    p31 = by_number(steering_forms.PROPOSITIONS, 31)
    for family, where in (("llama", "controls"), ("phi", "claim")):
        found = getattr(evidence(p31, tiny_blocks(family)), where)
        assert any("W_O really updated" in m.name for m in found)
