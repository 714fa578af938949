"""Wrappers: the model, its decoder and its layers are found inside PEFT's wrapper and this package's."""

import peft
import pytest
import torch
from torch import nn

from steerscope.errors import UnsupportedModelError
from steerscope.models import find_sites, wrap_model
from steerscope.models.blocks import is_transposed, linear_shape
from steerscope.models.virtual_tokens import num_virtual_tokens
from steerscope.models.wrappers import (
    acting_layer,
    decoder_of,
    is_peft,
    language_model,
    original_layer,
    tuner_layers,
    vocab_size,
)
from steerscope.steering import SteeringConfig, get_steering_model
from steerscope.steering.weights import WeightModel
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer


def wrapped(model: nn.Module, **options: object) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, **options))


WRAPPERS = {
    "plain": lambda model: model,
    "lora": lambda model: wrapped(model, target_modules=["down_proj"]),
    "prompt": lambda model: peft.get_peft_model(
        model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ),
    "edits": lambda model: get_steering_model(model, SteeringConfig("mlp_out", "vector")),
    "edits on lora": lambda model: get_steering_model(
        wrapped(model, target_modules=["down_proj"]), SteeringConfig("mlp_out", "vector")
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_model_inside(name):
    model = tiny_model("llama")
    outer = WRAPPERS[name](model)
    assert language_model(outer) is model
    assert decoder_of(outer) is model.model
    assert vocab_size(outer) == VOCAB
    assert is_peft(outer) == (name in ("lora", "prompt", "edits on lora"))
    assert num_virtual_tokens(outer) == (3 if name == "prompt" else 0)
    assert len(tuner_layers(outer)) == (2 if "lora" in name else 0)
    assert find_sites(outer).blocks[0].module is model.model.layers[0]


def test_changed_weights_are_a_wrapper_too():
    model = tiny_model("llama")
    outer = WeightModel(wrap_model(model, tiny_tokenizer()), "sft")
    assert language_model(outer) is model
    assert decoder_of(outer) is model.model


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(UnsupportedModelError, match="expected a causal language model of transformers, got Linear"):
        decoder_of(nn.Linear(2, 2))


def test_a_wrapped_layer_acts_by_its_copy_and_keeps_its_original():
    model = tiny_model("llama")
    attn, mlp = model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj
    outer = wrapped(model, target_modules=["o_proj"], modules_to_save=["down_proj"])
    block = model.model.layers[0]
    assert original_layer(block.self_attn.o_proj) is acting_layer(block.self_attn.o_proj) is attn
    assert original_layer(block.mlp.down_proj) is mlp
    copy = acting_layer(block.mlp.down_proj)
    assert copy is block.mlp.down_proj.modules_to_save["default"]
    assert copy is not mlp
    with outer.disable_adapter():
        assert acting_layer(block.mlp.down_proj) is mlp
    assert original_layer(block.self_attn.o_proj.lora_A) is block.self_attn.o_proj.lora_A
    assert acting_layer(attn) is original_layer(attn) is attn


def test_a_trained_copy_of_a_map_that_is_stored_input_first_keeps_its_shape():
    """GPT-2's Conv1D: inside PEFT's wrapper of a trained copy it was taken for a map stored output-first."""
    model = tiny_model("gpt2")
    before = linear_shape(model.transformer.h[0].mlp.c_fc)
    outer = wrapped(model, target_modules=["c_attn"], modules_to_save=["c_fc"], fan_in_fan_out=True)
    fc = model.transformer.h[0].mlp.c_fc
    assert is_transposed(fc)
    assert linear_shape(fc) == before
    assert before[0] != before[1]
    assert torch.equal(acting_layer(fc).weight, original_layer(fc).weight)
    assert find_sites(outer).d_model == 16
