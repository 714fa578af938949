"""P18 to P20: verdicts on random and tiny blocks."""

from dataclasses import replace

import pytest
import torch

from steerscope.equivalence.propositions import p18_19_projection as projection
from steerscope.equivalence.propositions import p20_second_moments as moments
from tests.equivalence.propositions.trials import (
    CORRECTED,
    FAMILIES,
    HOLDS,
    SEEDS,
    by_number,
    evidence,
    random_blocks,
    tiny_blocks,
    verdicts,
)

PROPOSITIONS = (*projection.PROPOSITIONS, *moments.PROPOSITIONS)
ALL = {18: CORRECTED, 19: HOLDS, 20: HOLDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed):
    assert verdicts(PROPOSITIONS, random_blocks(seed)) == ALL


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts(family):
    assert verdicts(PROPOSITIONS, tiny_blocks(family)) == ALL


def test_conditional_covariance_without_correlation_is_the_parallel_sum():
    draws = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = (x.T @ x for x in draws)
    torch.testing.assert_close(
        moments.conditional_covariance(left, right, torch.zeros_like(left)), moments.parallel_sum(left, right)
    )


def test_moments_of_too_few_tokens_are_refused():
    few = replace(random_blocks(0), more_ids=random_blocks(0).input_ids[:1, :1])
    assert "too few" in evidence(by_number(PROPOSITIONS, 20), few).inapplicable


def test_that_p18_is_for_few_tokens_stands_beside_its_verdict():
    found = evidence(by_number(PROPOSITIONS, 18), random_blocks(0))
    assert "at most d/2 = 12 tokens" in found.limit
    assert any(m.name == "A P_mlp h with 24 tokens" and not m.inside for m in found.controls)


def test_tokens_that_sequences_have_in_common_count_once():
    ids = random_blocks(0).input_ids.clone()
    ids[1, :3] = ids[0, :3]  # causal: the same context, the same vectors
    alike = replace(random_blocks(0), input_ids=ids)
    assert verdicts(projection.PROPOSITIONS, alike) == {18: CORRECTED, 19: HOLDS}
