"""LoFiT from scales to chosen heads to offsets."""

from __future__ import annotations

import pytest
import torch

from steerscope.errors import InputError
from steerscope.steering import SteeringConfig, get_steering_model
from steerscope.steering.lofit import SparseScales, head_sizes, l1_penalty, top_heads
from tests.steering.test_trainer import trainer_of
from tests.tiny import tiny_model


def stage_one(sites="attn_heads", **options):
    return get_steering_model(tiny_model("llama"), SteeringConfig(sites, "lofit_scale", **options))


@torch.no_grad()
def test_heads_with_the_largest_scales_are_chosen():
    steering = stage_one()
    steering.edit_at("0.attn_heads").A[8:12] = torch.tensor([3.0, 0, 4, 0])  # head 2, four channels per head
    steering.edit_at("1.attn_heads").A[0] = -6.0
    steering.edit_at("1.attn_heads").A[15] = 1.0
    assert list(head_sizes(steering).values())[:4] == [6, 5, 1, 0]
    assert top_heads(steering, 3) == ("1.attn_heads.0", "0.attn_heads.2", "1.attn_heads.3")
    assert float(l1_penalty(steering)) == 14
    base = steering.unload()
    offsets = get_steering_model(base, SteeringConfig(top_heads(steering, 2), "lofit_offset"))
    assert [str(site) for site in offsets.sites] == ["0.attn_heads.2", "1.attn_heads.0"]
    assert offsets.get_nb_trainable_parameters()[0] == 8


@torch.no_grad()
def test_single_heads_count_as_themselves():
    steering = stage_one(("0.attn_heads.1", "1.attn_heads.3"))
    steering.edit_at("1.attn_heads.3").A.fill_(0.5)
    assert head_sizes(steering) == {"1.attn_heads.3": 1.0, "0.attn_heads.1": 0.0}


def test_the_penalty_is_in_the_gradient_and_makes_scales_small(tmp_path):
    sizes = {}
    for strength in (0.0, 0.3):
        steering = stage_one(start="published")
        callback = SparseScales(steering, strength)
        steering.edit_at("0.attn_heads").A.grad = torch.zeros(16)
        callback.on_pre_optimizer_step(None, None, None)
        steering.zero_grad()
        if strength:
            (penalty,) = torch.autograd.grad(strength * l1_penalty(steering), steering.edit_at("0.attn_heads").A)
            steering.edit_at("0.attn_heads").A.grad = torch.zeros(16)
            callback.on_pre_optimizer_step(None, None, None)
            assert torch.equal(steering.edit_at("0.attn_heads").A.grad, penalty)
            steering.zero_grad()
        trainer_of(steering, tmp_path / str(strength), callbacks=[callback], save_strategy="no", max_steps=12).train()
        sizes[strength] = float(l1_penalty(steering).detach())
    assert sizes[0.3] < 0.7 * sizes[0.0]


def test_other_families_and_too_many_heads_are_refused():
    other = get_steering_model(tiny_model("llama"), SteeringConfig("attn_heads", "vector"))
    for function in (l1_penalty, head_sizes, lambda model: SparseScales(model, 1.0)):
        with pytest.raises(InputError, match="trains family 'lofit_scale', got 'vector'"):
            function(other)
    with pytest.raises(InputError, match="asked for 9 heads of 8"):
        top_heads(stage_one(), 9)
