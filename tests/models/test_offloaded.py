"""Models that are not all in memory are refused at the door, by all that looks at their weights."""

from __future__ import annotations

import accelerate
import pytest
import torch

from steerscope import SteeringConfig, SteeringModel, get_steering_model, rank_sites
from steerscope.analysis.data.examples import Example
from steerscope.equivalence.shifts import first_order_shift
from steerscope.errors import InputError
from steerscope.experiments.evaluation.generation import generate
from steerscope.models import wrap_model
from tests.byte_models import byte_model, byte_tokenizer
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8]])


def to_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def to_cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def one_block_to_disk(model, folder):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("offload", [to_disk, to_cpu, one_block_to_disk])
def test_refused(offload, tmp_path):
    model = tiny_model("llama")
    steering = get_steering_model(model, SteeringConfig("0.resid_post", rank=2))
    steering.save_pretrained(tmp_path / "adapter")
    steering.unload()
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    offload(loaded.model, tmp_path / "second")
    model = offload(tiny_model("llama"), tmp_path / "offloaded").eval()
    examples = [Example(prompt=str(i), completion=str(i % 3)) for i in range(24)]
    doors = {
        "steering": lambda: get_steering_model(model, SteeringConfig("0.resid_post", rank=2)),
        "fingerprint": lambda: SteeringModel.from_pretrained(model, tmp_path / "adapter"),
        "steering needs": lambda: SteeringModel.from_pretrained(model, tmp_path / "adapter", check_weights=False),
        "analysis": lambda: wrap_model(model, tiny_tokenizer()),
        "a ranking": lambda: rank_sites(loaded, examples),
        "a shift under": lambda: first_order_shift(model, {"model.norm.weight": torch.ones(16)}, {"input_ids": IDS}),
        "evaluation": lambda: generate(model, tiny_tokenizer(), ["1 2"], max_new_tokens=1),
    }
    for what, door in doors.items():
        with pytest.raises(InputError, match=rf"weights of this model are offloaded \('.*'.*{what}"):
            door()


def test_what_was_offloaded_after_it_was_steered_is_not_saved_half(tmp_path):
    steering = get_steering_model(tiny_model("llama"), SteeringConfig("0.resid_post", rank=2))
    to_disk(steering.base_model, tmp_path / "offloaded")
    with pytest.raises(InputError, match="fingerprint that an adapter is saved and loaded with"):
        steering.save_pretrained(tmp_path / "adapter")


def test_a_model_that_was_dispatched_whole_is_taken():
    model = byte_model()
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    loaded = wrap_model(model, byte_tokenizer())
    steering = get_steering_model(loaded, SteeringConfig("0.resid_post", rank=2, positions="last"))
    assert steering.generate(input_ids=IDS, max_new_tokens=2, pad_token_id=2).shape[1] > 4
