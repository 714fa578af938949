"""P46, attention written out: every family that is supported, and the formula with a term left out or changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steerscope.equivalence import attention_forms as forms
from steerscope.equivalence.propositions import p46_attention as proposition
from steerscope.equivalence.propositions.base import Verdict
from steerscope.equivalence.propositions.subject import subject_of
from tests.equivalence.propositions.trials import SEEDS, assert_verdict, random_blocks, verdict
from tests.tiny import FAMILIES, tiny_model

(P46,) = proposition.PROPOSITIONS


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed: int):
    assert_verdict(P46, random_blocks(seed), Verdict.HOLDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str):
    subject = subject_of(tiny_model(family, torch.float64), name=f"tiny {family}", seed=1)
    assert_verdict(P46, subject, Verdict.HOLDS)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"num_key_value_heads": 1}),
        ("phi", {"qk_layernorm": True}),
        ("gemma2", {"sliding_window": 3, "attn_logit_softcapping": 2.0}),
        ("gemma3_text", {"sliding_window": 3}),
        ("olmo2", {"num_key_value_heads": 4}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("smollm3", {"no_rope_layers": [0, 0]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_members_with_other_parts(family: str, overrides: dict):
    subject = subject_of(tiny_model(family, torch.float64, **overrides), name=f"tiny {family}", layer=1)
    assert_verdict(P46, subject, Verdict.HOLDS)


MUTATIONS: list[tuple[str, str, Callable]] = [
    ("llama", "softmax_shift", lambda weights, d_scores: weights * d_scores),
    ("llama", "softmax_shift", lambda weights, d_scores: weights * (d_scores - d_scores.mean(-1, keepdim=True))),
    ("llama", "_rotated", lambda x, form: x),
    ("llama", "_shared", lambda grouped, queries: grouped.repeat(1, queries.shape[1] // grouped.shape[1], 1, 1)),
    ("qwen3", "_norm_shift", lambda x, dx, norm, d_head: forms._normed(dx, norm, d_head)),
    ("olmo2", "_norm_shift", lambda x, dx, norm, d_head: forms._normed(dx, norm, d_head)),
    ("gemma2", "cap_slope", lambda raw, cap: torch.ones_like(raw)),
    ("gpt2", "_by_head", lambda flat, d_head: flat.unflatten(-1, (d_head, -1)).mT.transpose(1, 2)),
]


@pytest.mark.parametrize(("family", "formula", "wrong"), MUTATIONS, ids=[f"{f}-{n}" for f, n, _ in MUTATIONS])
def test_a_wrong_formula_fails(family: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    subject = subject_of(tiny_model(family, torch.float64), name=f"tiny {family}")
    monkeypatch.setattr(forms, formula, wrong)
    if hasattr(proposition, formula):
        monkeypatch.setattr(proposition, formula, wrong)
    assert verdict(P46, subject) is Verdict.FAILS
