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


def _hqq(linear):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    options = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    return HQQLinear(linear, options, compute_dtype=torch.float32, device="cpu")


def _of_gptqmodel(module: str, name: str):
    def layer(linear):
        made = getattr(importlib.import_module(f"gptqmodel.nn_modules.qlinear.{module}"), name)(
            bits=4, group_size=32, sym=True, desc_act=False, in_features=linear.in_features,
            out_features=linear.out_features, bias=False, register_buffers=True,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(linear.out_features)
        for key, held in made.named_buffers():
            if held.dtype == torch.int32 and key != "g_idx":
                held.copy_(torch.randint(-(2**31), 2**31 - 1, held.shape, generator=generator).int())
            elif held.is_floating_point():
                held.copy_(0.02 * torch.rand(held.shape, generator=generator))
        made.post_init()
        return made

    return layer


# Libraries whose layers are put into a model by hand here: what a checkpoint of theirs holds once it is loaded.
LAYERS = {
    "hqq 4 bits": ("hqq", _hqq),
    "GPTQ 4 bits": ("gptqmodel", _of_gptqmodel("torch", "TorchLinear")),
    "AWQ 4 bits": ("gptqmodel", _of_gptqmodel("torch_awq", "AwqTorchLinear")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("base")
    tiny_model("llama", **SIZES).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def quantised(folder, case):
    package, config = {**CASES, **LAYERS}[case]
    pytest.importorskip(package)
    if case in LAYERS:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name, module in list(model.model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                model.model.set_submodule(name, config(module))
        return model.eval()
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config(), dtype=torch.float32, device_map="cpu"
    )


def shares(model):
    examples = [Example(prompt=f"{i} {i % 7} =", completion=str(i % 5)) for i in range(24)]
    ranking = rank_sites(
        wrap_model(model, tiny_tokenizer()), examples, RankOptions(num_probes=3, max_sites=2, num_groups=4)
    )
    return {(site.name, site.family): site.scores["learnable_share"] for site in ranking.sites}


@pytest.mark.parametrize("case", [*CASES, *LAYERS])
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
    close = 1e-2 if case == "AWQ 4 bits" else 1e-3  # its layer computes in float16
    assert torch.allclose(model(input_ids=IDS).logits, twin(input_ids=IDS).logits, atol=close)
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
