"""Gradient checkpointing, both kinds: the same gradients, of the same tokens, and none below what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerscope.models import reading
from steerscope.steering import SteeringModel
from tests.steering.cases import close, padded, prompts, steered
from tests.tiny import LAYOUTS, tiny_model

SITES = ("1.attn_heads", "1.attn_out", "1.mlp_in", "1.mlp_hidden", "1.mlp_out", "1.resid_post")
LEFT, RIGHT = padded(prompts(), "left"), padded(prompts(), "right")


def without_dropout(family: str):
    model = tiny_model(family, torch.float64)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    return model


def gradients(model: SteeringModel) -> dict[str, Tensor]:
    """Two forwards before one backward, with other tokens edited in the second, as preference losses do."""
    model.zero_grad()
    lengths = torch.tensor([2, 1, 3])
    # Padded on the right: in float64 Gemma-2's own attention is not a number at padding on the left.
    first = model(**RIGHT, prompt_lengths=lengths).logits.square().mean()
    second = model(**RIGHT, prompt_lengths=lengths + 1).logits.square().mean()
    (first + 2 * second).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", LAYOUTS)
def test_gradients_are_those_without_checkpointing(family, reentrant):
    sites = SITES if family in ("gpt_neox", "phi") else (*SITES, "1.resid_mid", "0.resid_post")
    model = steered("nonlinear", without_dropout(family), sites=sites, positions="prompt").train()
    expected = gradients(model)
    assert len(expected) == 3 * len(sites)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        close(gradient, expected[name])
    model.unload()
    assert not any("Remembering" in type(f).__name__ for m in model.modules() for f in m.__dict__.values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_nothing_below_the_lowest_site_is_differentiated(reentrant):
    model = steered("linear", without_dropout("llama"), sites="1.mlp_hidden").train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    with reading(model.site_map, ["0.resid_post"]) as found:
        model(**LEFT).logits.square().mean().backward()
    assert not next(iter(found.values())).requires_grad
    assert model.edit_at("1.mlp_hidden").U.grad.abs().max() > 0


def test_blocks_really_run_again():
    """Otherwise the tests above would hold without any checkpointing."""
    model = steered("linear", without_dropout("llama"), sites="1.mlp_hidden", positions="prompt").train()
    calls = []
    handle = model.base_model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: calls.append(1))
    for enabled in (False, True):
        calls.clear()
        if enabled:
            model.activation_checkpointing_enable()
        model(**LEFT, prompt_lengths=torch.tensor([2, 1, 3])).logits.square().mean().backward()
        assert len(calls) == (2 if enabled else 1)
    handle.remove()
