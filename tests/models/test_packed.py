"""Quantised bases: what needs inputs and outputs works as with plain weights; the rest says why not."""

from __future__ import annotations

import json

import pytest
import torch

from steerscope import RankOptions, SteeringConfig, SteeringModel, get_steering_model, load_model, rank_sites
from steerscope.analysis.data.examples import Example
from steerscope.equivalence.shifts import first_order_shift
from steerscope.errors import InputError, SteerscopeError, UnsupportedModelError
from steerscope.experiments.finetune import short_finetune
from steerscope.models import find_sites, wrap_model
from steerscope.models.layouts import known_description
from steerscope.models.recognition import recognised
from steerscope.models.weight_hashes import digest_of_parameters, fingerprint_of
from steerscope.steering.weights import WeightModel
from tests.models.quantised import ForInferenceOnly, Nibbles, NotLinear, RoundsActivations, pack, twins
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 9, 8, 7, 6]])
EXAMPLES = [Example(prompt=f"{i} {i % 7} =", completion=str(i % 5)) for i in range(24)]
SMALL = RankOptions(num_probes=3, max_sites=2, num_groups=4)


def shares(model, options=SMALL):
    ranking = rank_sites(wrap_model(model, tiny_tokenizer()), EXAMPLES, options)
    return {(site.name, site.family): site.scores["learnable_share"] for site in ranking.sites}


@pytest.mark.parametrize("family", ["llama", "phi", "opt"])
def test_a_ranking_is_that_of_the_dequantised_twin(family):
    packed, plain = map(shares, twins(family))
    assert packed.keys() == plain.keys()
    assert max(abs(packed[key] - plain[key]) for key in plain) < 1e-4


def test_baselines_of_weights_are_those_of_the_twin():
    found = []
    for model in twins():
        ranking = rank_sites(
            wrap_model(model, tiny_tokenizer()),
            EXAMPLES,
            RankOptions(num_probes=3, num_groups=4, extra=("step", "spectrum")),
        )
        found.append([site.scores for site in ranking.sites])
    for packed, plain in zip(*found, strict=True):
        assert packed == pytest.approx(plain, rel=1e-3, abs=1e-3, nan_ok=True)


def test_rounded_activations_are_told():
    packed, plain = twins(layer=RoundsActivations)
    loaded = wrap_model(packed, tiny_tokenizer())
    assert "14 of 14 linear maps of the blocks are quantised (RoundsActivations)" in loaded.identity.quantised
    assert "round activations, too" in loaded.identity.quantised
    assert "round activations" not in wrap_model(twins()[0], tiny_tokenizer()).identity.quantised
    found, expected = shares(packed), shares(plain)
    assert max(abs(found[key] - expected[key]) for key in expected) < 0.05


def test_weights_that_a_library_made_float_in_the_first_pass_are_told():
    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "compressed-tensors"}
    told = wrap_model(model, tiny_tokenizer()).identity.quantised
    assert told == "weights quantised by compressed-tensors made float again on loading"


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [(ForInferenceOnly, "its gradient here is not that of what it computes"), (NotLinear, "no linear map")],
)
def test_a_packed_layer_without_its_gradient_is_refused(layer, complaint):
    model = pack(tiny_model("llama"), layer)
    for door in (
        lambda: wrap_model(model, tiny_tokenizer()),
        lambda: get_steering_model(model, SteeringConfig("0.resid_post", rank=2)),
    ):
        with pytest.raises(UnsupportedModelError, match=rf"layers\.\d.*keeps its weights packed, and .*{complaint}"):
            door()


def test_unknown_families_are_recognised_by_what_packed_maps_compute():
    packed, plain = twins("qwen3")
    assert recognised(packed) == recognised(plain)
    assert recognised(plain).mlp_reads == known_description(plain.config).mlp_reads


def test_the_identity_of_packed_weights():
    first, again, other = pack(tiny_model("llama")), pack(tiny_model("llama")), pack(tiny_model("llama"))
    other.model.layers[1].mlp.down_proj.scale.mul_(1.5)
    for hashed in (digest_of_parameters, fingerprint_of):
        assert hashed(first) == hashed(again)
        assert hashed(first) != hashed(other)
    loaded = wrap_model(first, tiny_tokenizer())
    assert loaded.identity.n_params == sum(value.numel() for value in tiny_model("llama").parameters())
    assert loaded.identity.dtype == "float32"


def test_steering_trains_saves_and_loads(tmp_path):
    packed, plain = twins()
    logits = []
    for model in (packed, plain):
        steering = get_steering_model(model, SteeringConfig("1.mlp_hidden", rank=2))
        optimizer = torch.optim.SGD([p for p in steering.parameters() if p.requires_grad], lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            steering(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
        logits.append(steering(input_ids=IDS).logits.detach())
        if model is packed:
            steering.save_pretrained(tmp_path / "adapter")
    assert torch.allclose(*logits, atol=1e-4)
    again = SteeringModel.from_pretrained(pack(tiny_model("llama")), tmp_path / "adapter")
    assert torch.equal(again(input_ids=IDS).logits, logits[0])
    with pytest.raises(InputError, match="fingerprint"):
        SteeringModel.from_pretrained(plain, tmp_path / "adapter")


def test_an_edit_is_exported_as_a_lora_of_the_packed_map(tmp_path):
    from safetensors.torch import load_file

    found = []
    for number, model in enumerate(twins()):
        steering = get_steering_model(model, SteeringConfig("1.mlp_out", rank=2, bias=False))
        with torch.no_grad():
            for value in steering.edits.parameters():
                value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape))
        steering.export_lora(tmp_path / str(number))
        found.append(load_file(tmp_path / str(number) / "adapter_model.safetensors"))
        assert json.loads((tmp_path / str(number) / "adapter_config.json").read_text())["target_modules"]
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


def test_what_needs_weights_refuses_with_the_reason(tmp_path):
    model = pack(tiny_model("llama"))
    loaded = wrap_model(model, tiny_tokenizer())
    steering = get_steering_model(model, SteeringConfig("0.mlp_out", rank=2, bias=False))
    doors = {
        "merging an adapter": steering.merge_and_unload,
        "training the model's own weights": lambda: WeightModel(loaded, "sft"),
        "method.* 'bitfit'": lambda: WeightModel(loaded, "bitfit"),
        "a shift under": lambda: first_order_shift(model, {"model.norm.weight": torch.ones(16)}, {"input_ids": IDS}),
        "verify": lambda: loaded.site_map.require_plain_blocks("verify"),
        "weights": lambda: short_finetune(loaded, EXAMPLES, steps=1),
    }
    for what, door in doors.items():
        with pytest.raises(SteerscopeError, match=rf"weights of this model are quantised \('.*Nibbles.*{what}.*"):
            door()


def test_a_layer_that_does_not_run_is_told(tmp_path):
    model = pack(tiny_model("llama"))
    model.model.layers[0].mlp.spare = Nibbles(torch.nn.Linear(16, 4))
    with pytest.raises(UnsupportedModelError, match=r"leaves out \['mlp.spare.codes'\]"):
        wrap_model(model, tiny_tokenizer())
    assert len(find_sites(model).linear_maps()) == 14


def test_weights_made_float_again_on_loading_are_told(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    # Without a GPU transformers makes such weights float.
    told["quantization_config"] = {"quant_method": "fp8", "dequantize": True}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert load_model(tmp_path).identity.quantised == "weights quantised by fp8 made float again on loading"
