"""P12, P13, P16, P17: verdicts on random and tiny blocks."""

import pytest
import torch

from steerscope.equivalence.propositions import p12_13_16_17_skip as skip
from tests.equivalence.propositions.trials import (
    CORRECTED,
    FAMILIES,
    HOLDS,
    SEEDS,
    random_blocks,
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
