"""P14, P15: verdicts on random and tiny blocks."""

import pytest

from steerscope.equivalence.propositions import p14_15_reft as reft
from tests.equivalence.propositions.trials import (
    FAMILIES,
    HOLDS,
    SEEDS,
    by_number,
    evidence,
    random_blocks,
    tiny_blocks,
    verdicts,
)

ALL = {14: HOLDS, 15: HOLDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed):
    assert verdicts(reft.PROPOSITIONS, random_blocks(seed)) == ALL


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts(family):
    assert verdicts(reft.PROPOSITIONS, tiny_blocks(family)) == ALL


def test_after_a_post_norm_the_edit_is_no_update_of_the_down_projection():
    found = evidence(by_number(reft.PROPOSITIONS, 14), tiny_blocks("gemma2"))
    assert "after the norm the two differ" in found.notes[0]
