"""P14, P15: verdicts on random and tiny blocks, and that a wrong formula is noticed."""

import pytest

from steerscope.equivalence.propositions import p14_15_reft as reft
from tests.equivalence.propositions.trials import (
    FAILS,
    FAMILIES,
    HOLDS,
    SEEDS,
    by_number,
    evidence,
    instead,
    mutated_verdict,
    random_blocks,
    scaled,
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


MUTATIONS = [
    (14, "effective_update", instead(lambda r, down, bias: (r.rotation.T @ r.weight @ down, r.rotation.T @ r.bias))),
    (14, "reft_edit", scaled(1.01)),
    (15, "reft_edit", scaled(1.01)),
    (15, "overwritten", instead(lambda x, r: x @ r.weight.T)),
]


@pytest.mark.parametrize(("number", "name", "mutate"), MUTATIONS, ids=[f"P{m[0]}-{m[1]}" for m in MUTATIONS])
def test_a_wrong_formula_fails(monkeypatch, number, name, mutate):
    assert mutated_verdict(monkeypatch, reft, number, name, mutate) is FAILS
