"""Edits that are the same edit written twice, in float64, and edits that look so and are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steerscope.models import find_sites, reading, true_float64
from steerscope.models.blocks import is_transposed, linear_weight
from steerscope.steering import SteeringConfig, get_steering_model
from tests.steering.cases import close, padded, prompts
from tests.tiny import FAMILIES, tiny_model

POST_NORM = ("gemma2", "gemma3_text", "olmo2")
BATCH = padded(prompts(), "left")


def drawn(*shape: int) -> Tensor:
    return 0.5 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def weight_of(module: nn.Module) -> Tensor:
    weight = linear_weight(module)
    return weight.T if is_transposed(module) else weight


def with_vector(model: nn.Module, site: str, vector: Tensor, family: str = "vector") -> Tensor:
    steering = get_steering_model(model, SteeringConfig(site, family, dtype="float64")).eval()
    steering.edit_at(site).v.data.copy_(vector)
    logits = steering(**BATCH).logits
    steering.unload()
    return logits


def plain(model: nn.Module) -> Tensor:
    return model(**BATCH).logits


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_lofit_offset_is_a_fixed_vector_at_attn_out(family):
    model = tiny_model(family, torch.float64)
    write = find_sites(model).blocks[1].attn_write
    weight = weight_of(write)
    size = weight.shape[1] // 4
    v = drawn(size)
    with true_float64(model):
        offset = with_vector(model, "1.attn_heads.2", v, "lofit_offset")
        same = with_vector(model, "1.attn_out", weight[:, 2 * size : 3 * size] @ v)
        assert (offset - plain(model)).abs().max() > 1e-3
    if family in POST_NORM:  # the offset enters the norm, the vector does not
        assert (offset - same).abs().max() > 1e-3
    else:
        close(offset, same)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_vector_at_mlp_out_is_one_at_resid_post_and_a_bias_without_a_norm(family):
    model = tiny_model(family, torch.float64)
    block, v = find_sites(model).blocks[0], drawn(16)
    with true_float64(model):
        written = with_vector(model, "0.mlp_out", v)
        assert (written - plain(model)).abs().max() > 1e-3
        close(with_vector(model, "0.resid_post", v), written)
        if not block.description.parallel:
            close(with_vector(model, "0.resid_mid", v), with_vector(model, "0.attn_out", v))
        down = block.mlp_write
        if down.bias is None:
            down.bias = nn.Parameter(torch.zeros(16, dtype=torch.float64))
        down.bias += v
        as_bias = plain(model)
    if family in POST_NORM:
        assert (as_bias - written).abs().max() > 1e-3
    else:
        close(as_bias, written)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_linear_adapter_is_a_weight_edit_plus_a_skip_term(family):
    """x = skip + W m (+ bias): U D x = (U D) W m + U D skip. The first part is a weight edit, the second is not."""
    model = tiny_model(family, torch.float64)
    site_map = find_sites(model)
    block = site_map.blocks[1]
    up, down = drawn(16, 3), drawn(3, 16)
    with true_float64(model):
        steering = get_steering_model(model, SteeringConfig("1.resid_post", rank=3, bias=False, dtype="float64")).eval()
        steering.edit_at("1.resid_post").U.data.copy_(up)
        steering.edit_at("1.resid_post").D.data.copy_(down)
        with reading(site_map, ["1.resid_post"]) as adapted:
            steering(**BATCH)
        steering.unload()
        with reading(site_map, ["1.resid_post", "1.mlp_out"]) as before:
            plain(model)
        out, written = (before[site_map.resolve(name)] for name in ("1.resid_post", "1.mlp_out"))
        skip = (out - written) @ down.T @ up.T
        weight = weight_of(block.mlp_write)
        weight += up @ down @ weight
        if block.mlp_write.bias is not None:
            block.mlp_write.bias += up @ down @ block.mlp_write.bias
        with reading(site_map, ["1.resid_post"]) as edited:
            plain(model)
    site = site_map.resolve("1.resid_post")
    assert (edited[site] - adapted[site]).abs().max() > 1e-3  # without the skip term
    if family in POST_NORM:  # the norm stands between the weight and what the adapter reads
        assert (edited[site] + skip - adapted[site]).abs().max() > 1e-3
    else:
        close(edited[site] + skip, adapted[site])
