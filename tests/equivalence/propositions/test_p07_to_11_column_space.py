"""P7 to P11: verdicts on random and tiny blocks."""

import pytest

from steerscope.equivalence.propositions import p07_08_11_column_space, p09_10_norm_and_skip
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

FILES = (p07_08_11_column_space, p09_10_norm_and_skip)
ALL = [proposition for file in FILES for proposition in file.PROPOSITIONS]
SEQUENTIAL = {7: HOLDS, 8: HOLDS, 9: HOLDS, 10: HOLDS, 11: HOLDS}
PARALLEL = {**SEQUENTIAL, 10: NOT_APPLICABLE}  # no stream between attention and MLP
EXPECTED = {
    "llama": SEQUENTIAL,
    "gemma2": SEQUENTIAL,
    "olmo2": {**SEQUENTIAL, 9: NOT_APPLICABLE},  # no norm before the MLP
    "gpt2": SEQUENTIAL,
    "gpt_neox": PARALLEL,
    "phi": PARALLEL,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed):
    assert verdicts(ALL, random_blocks(seed)) == SEQUENTIAL


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts(family):
    assert verdicts(ALL, tiny_blocks(family)) == EXPECTED[family]


def test_that_the_condition_excludes_nothing_holds_and_is_a_limit_of_p7():
    found = evidence(by_number(ALL, 8), random_blocks(0))
    assert "excludes nothing" in found.notes[0]
    assert not found.inapplicable
    assert "rank below d" in evidence(by_number(ALL, 7), random_blocks(0)).limit
    assert "cond(A)" in found.notes[0]
    assert all(m.inside for m in found.claim)


def test_relu_with_few_active_units_is_obstructed():
    found = evidence(by_number(ALL, 8), tiny_blocks("opt"))
    assert "hidden units are active" in found.inapplicable


def test_layer_norm_costs_two_dimensions():
    notes = evidence(by_number(ALL, 9), tiny_blocks("gpt2")).notes
    assert "2 dimensions lost" in notes[0]
