"""Bases quantised by the libraries that people use; skipped where a library is absent."""

from __future__ import annotations

import importlib

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from steerscope import RankOptions, SteeringConfig, SteeringModel, get_steering_model, load_model, rank_sites
from steerscope.analysis.data.examples import Example
from steerscope.errors import UnsupportedModelError
from steerscope.models import wrap_model
from steerscope.models.packed import is_packed, matrix_of
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 9, 8, 7, 6]])
# Blocks of 64 weights share a scale in some of them.
SIZES = {"hidden_size": 64, "intermediate_size": 128}


def torchao(name: str, **options):
    return lambda: TorchAoConfig(getattr(importlib.import_module("torchao.quantization"), name)(**options))


CASES = {
    "bitsandbytes 4 bits": (
        "bitsandbytes",
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    ),
    "torchao int8": ("torchao", torchao("Int8WeightOnlyConfig")),
    "torchao int4": ("torchao", torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
    "torchao float8": ("torchao", torchao("Float8WeightOnlyConfig")),
    "quanto int4": ("optimum.quanto", lambda: QuantoConfig(weights="int4")),
    "quanto float8": ("optimum.quanto", lambda: QuantoConfig(weights="float8")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    tiny_model("llama", **SIZES).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def quantised(folder, case):
    package, config = CASES[case]
    pytest.importorskip(package)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config(), dtype=torch.float32, device_map="cpu"
    )


def shares(model):
    examples = [Example(prompt=f"{i} {i % 7} =", completion=str(i % 5)) for i in range(24)]
    ranking = rank_sites(
        wrap_model(model, tiny_tokenizer()), examples, RankOptions(num_probes=3, max_sites=2, num_groups=4)
    )
    return {(site.name, site.family): site.scores["learnable_share"] for site in ranking.sites}


@pytest.mark.parametrize("case", CASES)
def test_a_ranking_is_that_of_the_dequantised_twin(folder, case):
    model = quantised(folder, case)
    with torch.no_grad():
        model(input_ids=IDS)  # bitsandbytes repacks weights then, for a kernel without gradients
    found, twin = shares(model), tiny_model("llama", **SIZES)
    packed = {name: module for name, module in model.named_modules() if not [*module.children()] and is_packed(module)}
    assert len(packed) == 14
    with torch.no_grad():
        for name, module in packed.items():
            twin.get_submodule(name).weight.copy_(matrix_of(module))
    assert torch.allclose(model(input_ids=IDS).logits, twin(input_ids=IDS).logits, atol=1e-3)
    expected = shares(twin)
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-3


@pytest.mark.parametrize("case", ["bitsandbytes 4 bits", "torchao int8"])
def test_a_saved_one_is_loaded_steered_and_its_adapter_fits_again(folder, case, tmp_path):
    quantised(folder, case).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert "linear maps of the blocks are quantised" in loaded.identity.quantised
    steering = get_steering_model(loaded, SteeringConfig("1.mlp_hidden", rank=2))
    steering(input_ids=IDS, labels=IDS).loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for n, p in steering.named_parameters() if n.endswith("U"))
    steering.save_pretrained(tmp_path / "adapter")
    again = SteeringModel.from_pretrained(load_model(tmp_path / "model"), tmp_path / "adapter")
    assert torch.equal(again(input_ids=IDS).logits, steering(input_ids=IDS).logits)


def test_dynamic_activations_without_a_gradient_are_refused(folder):
    pytest.importorskip("torchao")
    config = torchao("Int8DynamicActivationInt8WeightConfig")()
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    with pytest.raises(UnsupportedModelError, match="its gradient here is not that of what it computes"):
        wrap_model(model, tiny_tokenizer())


def test_rounded_activations_of_bitsandbytes_are_told(folder):
    pytest.importorskip("bitsandbytes")
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    assert "round activations, too" in wrap_model(model, tiny_tokenizer()).identity.quantised
