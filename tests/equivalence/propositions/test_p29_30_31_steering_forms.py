"""P29 to P31: verdicts on random and tiny blocks, and that a wrong formula is noticed."""

import pytest
import torch
from torch.nn import functional

from steerscope.equivalence.propositions import p29_30_31_steering_forms as steering_forms
from tests.equivalence.propositions.trials import (
    FAILS,
    FAMILIES,
    HOLDS,
    NOT_APPLICABLE,
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


def relu_adapter(up, down, h):
    return functional.relu(h @ down.T) @ up.T


MUTATIONS = [
    (29, "nonlinear_adapter", instead(relu_adapter)),
    (29, "rescaled_nonlinear", scaled(0.5)),
    (30, "nonlinear_adapter", instead(lambda up, down, h: torch.sigmoid(h @ down.T) @ up.T)),
    (30, "linear_adapter", lambda original: lambda up, down, h: original(up + 1, down, h)),
    (31, "skip_read", scaled(1.01)),
    (31, "written_update", lambda original: lambda *args: tuple(1.01 * part for part in original(*args))),
]


@pytest.mark.parametrize(("number", "name", "mutate"), MUTATIONS, ids=[f"P{m[0]}-{m[1]}" for m in MUTATIONS])
def test_a_wrong_formula_fails(monkeypatch, number, name, mutate):
    assert mutated_verdict(monkeypatch, steering_forms, number, name, mutate) is FAILS
