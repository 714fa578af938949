"""Merged weights do what the adapter did; what cannot be merged is refused and left as it was."""

from __future__ import annotations

import pytest
import torch

from steerscope.errors import InputError
from steerscope.models import true_float64
from steerscope.steering import SteeringConfig, get_steering_model
from tests.steering.cases import SETTINGS, close, hooks_of, padded, prompts, randomise
from tests.tiny import FAMILIES, LAYOUTS, tiny_model

POST_NORM = ("gemma2", "gemma3_text", "olmo2")
BATCH = padded(prompts(), "left")
AFFINE = [name for name in SETTINGS if name != "nonlinear"]


def steering_of(model, sites, family: str = "linear", **options):
    config = SteeringConfig(sites, family, dtype="float64", **options)
    return randomise(get_steering_model(model, config).eval())


def check_merge(model, sites, family: str, **options) -> None:
    plain = model(**BATCH).logits
    steering = steering_of(model, sites, family, **options)
    expected = steering(**BATCH).logits
    assert (expected - plain).abs().max() > 1e-3
    merged = steering.merge_and_unload(make_biases=True)
    assert merged is model
    assert hooks_of(model) == 0
    close(model(**BATCH).logits, expected)


@pytest.mark.filterwarnings("ignore:linear maps at . sites got a bias:UserWarning")
@pytest.mark.parametrize("kind", ["attn_heads", "attn_out", "mlp_in", "mlp_hidden", "mlp_out"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_linear_edits_next_to_weights_merge_in_every_layout(family, kind):
    model = tiny_model(family, torch.float64)
    with true_float64(model):
        if family in POST_NORM and kind in ("attn_out", "mlp_out"):
            with pytest.raises(InputError, match="is added behind a norm"):
                steering_of(model, kind, rank=3).merge_and_unload(make_biases=True)
        else:
            check_merge(model, kind, "linear", rank=3)


@pytest.mark.filterwarnings("ignore:linear maps at . sites got a bias:UserWarning")
@pytest.mark.parametrize("kind", ["attn_heads", "mlp_out"])
@pytest.mark.parametrize("family", AFFINE)
@torch.no_grad()
def test_affine_families_merge(family, kind):
    if family.startswith("lofit") and kind == "mlp_out":
        pytest.skip("LoFiT is defined at heads")
    rank = {"rank": 3} if "rank" in SETTINGS[family] else {}
    model = tiny_model("llama", torch.float64)
    with true_float64(model):
        check_merge(model, (f"0.{kind}", f"1.{kind}.1" if kind == "attn_heads" else f"1.{kind}"), family, **rank)


@pytest.mark.filterwarnings("ignore:linear maps at . sites got a bias:UserWarning")
@pytest.mark.parametrize("family", LAYOUTS)
@torch.no_grad()
def test_several_sites_of_one_block_merge_in_order(family):
    sites = ["0.attn_heads", "0.mlp_in", "0.mlp_hidden", "1.attn_heads.0", "1.attn_heads.3"]
    if family not in POST_NORM:
        sites += ["0.attn_out", "0.mlp_out"]
    model = tiny_model(family, torch.float64)
    with true_float64(model):
        check_merge(model, tuple(sites), "linear", rank=2)


@pytest.mark.parametrize("kind", ["resid_post", "resid_mid", "mlp_out"])
@torch.no_grad()
def test_vectors_merge_into_biases_that_are_there(kind):
    model = tiny_model("gpt2", torch.float64)
    with true_float64(model):
        steering = steering_of(model, kind, "vector")
        expected = steering(**BATCH).logits
        steering.merge_and_unload()
        close(model(**BATCH).logits, expected)


@torch.no_grad()
def test_a_bias_is_made_only_when_asked_for():
    model = tiny_model("llama", torch.float64)
    steering = steering_of(model, "resid_post", "vector")
    with pytest.raises(InputError, match="needs a bias that the model's linear map there does not have"):
        steering.merge_and_unload()
    assert model.model.layers[0].mlp.down_proj.bias is None
    with pytest.warns(UserWarning, match="linear maps at 2 sites got a bias"):
        steering.merge_and_unload(make_biases=True)
    assert model.model.layers[0].mlp.down_proj.bias is not None


@pytest.mark.parametrize(
    ("family", "sites", "options", "message"),
    [
        ("llama", ("0.mlp_out", "1.resid_post"), {"rank": 2, "bias": False}, "skip connection carries its part past"),
        ("llama", "0.resid_mid", {"rank": 2, "bias": False}, "skip connection"),
        ("llama", "0.mlp_out", {"family": "nonlinear", "rank": 2}, "a nonlinear edit .* is no affine map"),
        ("llama", "0.mlp_out", {"rank": 2, "bias": False, "positions": "prompt"}, "weights act on every token"),
        ("llama", "0.resid_pre", {"family": "vector"}, "adds to the embeddings"),
        ("gemma2", "0.resid_post", {"family": "vector"}, "is added behind a norm .*no bias"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_merged_is_refused_and_nothing_changes(family, sites, options, message):
    model = tiny_model(family, torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steering = steering_of(model, sites, **options)
    with pytest.raises(InputError, match=message):
        steering.merge_and_unload(make_biases=True)
    assert hooks_of(steering.unload()) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
