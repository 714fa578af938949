"""Models whose weights ``device_map`` keeps elsewhere give the numbers of the same model in memory, or say why not."""

from __future__ import annotations

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

from steerscope import RankOptions, SteeringConfig, SteeringModel, get_steering_model, load_model, rank_sites
from steerscope.analysis.data.examples import Example
from steerscope.equivalence.shifts import first_order_shift
from steerscope.errors import InputError
from steerscope.experiments.evaluation.generation import generate
from steerscope.models import wrap_model
from steerscope.models.offloaded import device_of
from steerscope.models.upper_blocks import above_blocks
from steerscope.models.weight_hashes import digest_of_parameters, fingerprint_of
from steerscope.steering.weights import WeightModel
from tests.byte_models import byte_model, byte_tokenizer
from tests.models.quantised import pack
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8]])
EXAMPLES = [Example(prompt=f"{i} {i % 7} =", completion=str(i % 5)) for i in range(24)]


def to_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def to_cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def one_block_to_disk(model, folder):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


WAYS = [to_disk, to_cpu, one_block_to_disk]


@pytest.mark.parametrize("offload", WAYS)
def test_a_ranking_is_that_of_the_model_in_memory(offload, tmp_path):
    found = []
    for model in (tiny_model("llama"), offload(tiny_model("llama"), tmp_path).eval()):
        loaded = wrap_model(model, tiny_tokenizer())
        assert loaded.device == torch.device("cpu")
        ranking = rank_sites(loaded, EXAMPLES, RankOptions(num_probes=3, max_sites=2, num_groups=4, extra=("step",)))
        found.append([(site.name, site.family, site.scores) for site in ranking.sites])
        assert any(value.is_meta for value in model.parameters()) is (len(found) == 2)
    assert found[0] == found[1]


# Older transformers look at the first weight alone, which may be offloaded.
@pytest.mark.filterwarnings("ignore:You are calling .generate")
@pytest.mark.parametrize("offload", WAYS)
def test_steering_trains_saves_loads_and_generates(offload, tmp_path):
    logits, texts = [], []
    for number, model in enumerate((byte_model(), offload(byte_model(), tmp_path / "away").eval())):
        loaded = wrap_model(model, byte_tokenizer())
        steering = get_steering_model(loaded, SteeringConfig(["1.mlp_hidden", "0.resid_post"], rank=2))
        optimizer = torch.optim.SGD([p for p in steering.parameters() if p.requires_grad], lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            steering(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
        logits.append(steering(input_ids=IDS).logits.detach())
        texts.append([one.text for one in generate(steering, byte_tokenizer(), ["1 2", "3"], max_new_tokens=3)])
        steering.save_pretrained(tmp_path / str(number))
        steering.unload()
        again = SteeringModel.from_pretrained(model, tmp_path / "0")
        assert torch.equal(again(input_ids=IDS).logits, logits[-1])
    assert torch.equal(*logits)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("offload", WAYS)
def test_hashes_are_those_of_the_model_in_memory(offload, tmp_path):
    for make in (tiny_model, lambda family: pack(tiny_model(family))):
        plain, away = make("llama"), offload(make("llama"), tmp_path / make.__name__)
        assert digest_of_parameters(plain) == digest_of_parameters(away)
        assert fingerprint_of(plain) == fingerprint_of(away)


def test_an_export_reads_the_weights_from_where_they_are(tmp_path):
    for number, model in enumerate((tiny_model("llama"), to_disk(tiny_model("llama"), tmp_path / "away"))):
        steering = get_steering_model(model, SteeringConfig("1.mlp_out", rank=2, bias=False))
        with torch.no_grad():
            for value in steering.edits.parameters():
                value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape))
        steering.export_lora(tmp_path / str(number))
    saved = [(tmp_path / number / "adapter_model.safetensors").read_bytes() for number in "01"]
    assert saved[0] == saved[1]


def test_skipping_blocks_leaves_the_hooks_that_bring_weights(tmp_path):
    loaded = wrap_model(to_disk(tiny_model("llama"), tmp_path), tiny_tokenizer())
    model, before = loaded.model, loaded.model(input_ids=IDS).logits
    with torch.no_grad(), above_blocks(loaded.site_map, torch.zeros(1, 4, 16)):
        model(input_ids=IDS)
    assert torch.equal(model(input_ids=IDS).logits, before)


@pytest.mark.parametrize("offload", WAYS)
def test_what_writes_into_weights_refuses(offload, tmp_path):
    model = offload(tiny_model("llama"), tmp_path)
    loaded = wrap_model(model, tiny_tokenizer())
    steering = get_steering_model(model, SteeringConfig("0.mlp_out", rank=2, bias=False))
    doors = {
        "merging": steering.merge_and_unload,
        "a shift under": lambda: first_order_shift(model, {"model.norm.weight": torch.ones(16)}, {"input_ids": IDS}),
        "training the model's own weights": lambda: WeightModel(loaded, "sft"),
    }
    for what, door in doors.items():
        with pytest.raises(InputError, match=rf"weights of this model are offloaded \('.*'.*{what}"):
            door()


def test_weights_without_values_are_refused(tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model("llama").config)
    partly = tiny_model("llama")
    partly.model.layers[1].mlp.down_proj.to("meta")
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    loaded.model.model.layers[1].mlp.down_proj.to("meta")
    doors = (
        lambda: wrap_model(model, tiny_tokenizer()),
        lambda: get_steering_model(partly, SteeringConfig("0.resid_post", rank=2)),
        lambda: rank_sites(loaded, EXAMPLES),
        lambda: generate(partly, tiny_tokenizer(), ["1 2"], max_new_tokens=1),
        lambda: fingerprint_of(partly),
        lambda: device_of(model),
    )
    for door in doors:
        with pytest.raises(InputError, match=r"no values.*on the meta device, and nothing brings"):
            door()


def test_a_model_that_was_dispatched_whole_is_taken():
    model = byte_model()
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    loaded = wrap_model(model, byte_tokenizer())
    steering = get_steering_model(loaded, SteeringConfig("0.resid_post", rank=2, positions="last"))
    assert steering.generate(input_ids=IDS, max_new_tokens=2, pad_token_id=2).shape[1] > 4


def test_layers_are_placed_over_all_devices_on_loading(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    split, whole = load_model(tmp_path, device="balanced"), load_model(tmp_path)
    assert split.device == whole.device
    assert torch.equal(split.model(input_ids=IDS).logits, whole.model(input_ids=IDS).logits)
