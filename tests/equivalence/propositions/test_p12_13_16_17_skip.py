"""P12, P13, P16, P17: verdicts on random and tiny blocks, and that a wrong formula is noticed."""

import pytest
import torch

from steerscope.equivalence.propositions import p12_13_16_17_skip as skip
from tests.equivalence.propositions.trials import (
    CORRECTED,
    FAILS,
    FAMILIES,
    HOLDS,
    SEEDS,
    instead,
    mutated_verdict,
    random_blocks,
    scaled,
    tiny_blocks,
    verdicts,
)

PRE_NORM = {12: HOLDS, 13: HOLDS, 16: HOLDS, 17: HOLDS}
POST_NORM = {**PRE_NORM, 13: CORRECTED}  # the bias of the down projection is another edit there
EXPECTED = {family: POST_NORM if family in ("gemma2", "olmo2") else PRE_NORM for family in FAMILIES}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed):
    assert verdicts(skip.PROPOSITIONS, random_blocks(seed)) == PRE_NORM


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts(family):
    assert verdicts(skip.PROPOSITIONS, tiny_blocks(family)) == EXPECTED[family]


def test_checks_leave_the_model_as_it_was():
    subject = random_blocks(0)
    before = {name: value.clone() for name, value in subject.model.named_parameters()}
    verdicts(skip.PROPOSITIONS, subject)
    after = dict(subject.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert subject.block.mlp_write.bias is None


MUTATIONS = [
    (12, "oracle", scaled(1.001)),
    (13, "bias_of_down", lambda original: lambda module, vector: 1.001 * original(module, vector)),
    (16, "read_at_mlp_out", instead(skip.read_at_resid_post)),
    (16, "read_at_resid_post", instead(skip.read_at_mlp_out)),
    (17, "adapter", instead(lambda parameters, read, activation: torch.zeros_like(read))),
]


@pytest.mark.parametrize(("number", "name", "mutate"), MUTATIONS, ids=[f"P{m[0]}-{m[1]}" for m in MUTATIONS])
def test_a_wrong_formula_fails(monkeypatch, number, name, mutate):
    assert mutated_verdict(monkeypatch, skip, number, name, mutate) is FAILS
