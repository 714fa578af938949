"""P18 to P20: verdicts on random and tiny blocks, and that a wrong formula is noticed."""

import pytest
import torch

from steerscope.equivalence.propositions import p18_19_20_projection as projection
from tests.equivalence.propositions.trials import (
    CORRECTED,
    FAILS,
    FAMILIES,
    HOLDS,
    SEEDS,
    instead,
    mutated_verdict,
    random_blocks,
    tiny_blocks,
    verdicts,
)

ALL = {18: CORRECTED, 19: HOLDS, 20: HOLDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed):
    assert verdicts(projection.PROPOSITIONS, random_blocks(seed)) == ALL


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts(family):
    assert verdicts(projection.PROPOSITIONS, tiny_blocks(family)) == ALL


def test_conditional_covariance_without_correlation_is_the_parallel_sum():
    draws = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = (x.T @ x for x in draws)
    torch.testing.assert_close(
        projection.conditional_covariance(left, right, torch.zeros_like(left)), projection.parallel_sum(left, right)
    )


MUTATIONS = [
    (18, "mlp_projector", lambda original: lambda skip, mlp: original(mlp, skip)),
    (19, "least_worst_error", instead(lambda edit, shared, maps: min(float((b @ shared).norm()) for b in maps))),
    (20, "parallel_sum", instead(lambda left, right: left)),
    (20, "best_projection", instead(lambda skip, mlp: torch.eye(len(skip), dtype=skip.dtype))),
    (20, "conditional_covariance", instead(lambda skip, mlp, cross: projection.parallel_sum(skip, mlp))),
]


@pytest.mark.parametrize(("number", "name", "mutate"), MUTATIONS, ids=[f"P{m[0]}-{m[1]}" for m in MUTATIONS])
def test_a_wrong_formula_fails(monkeypatch, number, name, mutate):
    assert mutated_verdict(monkeypatch, projection, number, name, mutate) is FAILS


def test_the_two_projectors_of_p18_cannot_both_be_the_same(monkeypatch):
    same = instead(projection.mlp_projector)
    assert mutated_verdict(monkeypatch, projection, 18, "skip_projector", same) is FAILS  # A (I - P) is wrong then
