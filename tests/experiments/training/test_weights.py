"""Training a model's own weights: all or biases; what is kept, and a model that is given back as it was."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerscope.errors import InputError
from steerscope.experiments.evaluation.adapters import read_adapter, with_adapter
from steerscope.experiments.training.weights import WeightModel, add_biases
from steerscope.models.weight_hashes import digest_of_parameters
from tests.experiments.training.tiny_runs import loaded, make_place

IDS = torch.tensor([[5, 9, 30, 7]])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("weights"))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


@torch.no_grad()
def moved(model: WeightModel) -> WeightModel:
    for index, parameter in enumerate(model.trained().values()):
        if index % 2 == 0:
            parameter.add_(0.1)
    return model


@pytest.mark.parametrize(
    ("name", "method"), [("model", "sft"), ("model", "bitfit"), ("gpt2", "sft"), ("gpt2", "bitfit")]
)
def test_saved_loaded_and_restored(place, tmp_path, name, method):
    base = loaded(place, name)
    before, digest = logits(base.model), digest_of_parameters(base.model)
    model = WeightModel(base, method)
    assert torch.equal(logits(model), before)  # nothing, or zero biases, so far
    assert bool(model.added) == ((name, method) == ("model", "bitfit"))
    trained, total = model.get_nb_trainable_parameters()
    assert (trained == total) == (method == "sft")
    moved(model)
    changed = logits(model)
    assert not torch.allclose(changed, before)
    model.save_pretrained(tmp_path / "out")
    if not model.added:  # half of the tensors did not change, and are not kept
        assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == -(-len(model.trained()) // 2)
    assert digest_of_parameters(model.restore()) == digest
    assert torch.equal(logits(base.model), before)
    assert not any(p.requires_grad for p in base.model.parameters())

    saved = read_adapter(tmp_path / "out")
    assert (saved.method, saved.changed) == (method, 0 if model.added else trained)
    assert torch.equal(logits(with_adapter(loaded(place, name), saved)), changed)


def test_a_state_holds_what_is_trained_and_loads_strictly(place):
    model = moved(WeightModel(loaded(place), "bitfit"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert set(state) == set(model.added)
    model.restore()
    again = WeightModel(loaded(place), "bitfit")
    again.load_state_dict(state, strict=False)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    with pytest.raises(InputError, match="lacks"):
        again.load_state_dict(dict(list(state.items())[1:]), strict=False)
    # Tied weights are trained, and kept, once.
    tied = WeightModel(loaded(place), "sft")
    assert "lm_head.weight" not in tied.state_dict()
    assert tied.get_nb_trainable_parameters()[0] == sum(p.numel() for p in tied.base_model.parameters())


def test_other_models_and_damaged_folders_are_refused(place, tmp_path):
    model = moved(WeightModel(loaded(place), "sft"))
    model.save_pretrained(tmp_path / "out")
    with pytest.raises(InputError, match="this adapter was trained for"):
        with_adapter(loaded(place, "gpt2"), read_adapter(tmp_path / "out"))
    model.restore()
    with torch.no_grad():
        other = loaded(place)
        other.model.model.norm.weight.mul_(2)
    with pytest.raises(InputError, match="fingerprint"):
        with_adapter(other, read_adapter(tmp_path / "out"))
    path = tmp_path / "out" / "adapter_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"format_version": 1}))
    with pytest.raises(InputError, match="and format 1"):
        read_adapter(tmp_path / "out")
    with pytest.raises(InputError, match="no linear map"):
        add_biases(other.model, ("model.layers.9.bias",))
    before = [name for name, _ in other.model.named_parameters()]
    with pytest.raises(InputError, match="cannot add"):
        add_biases(other.model, ("model.layers.0.mlp.up_proj.bias",) * 2)
    assert [name for name, _ in other.model.named_parameters()] == before
    path.write_text(json.dumps(told | {"changed": None}))
    with pytest.raises(InputError, match="has fields"):
        read_adapter(tmp_path / "out")
    with pytest.raises(InputError, match="cannot add"):
        add_biases(loaded(place, "gpt2").model, ("transformer.h.0.mlp.c_fc.bias",))


@pytest.mark.parametrize("change", ["less", "more", "misshaped"])
def test_a_file_that_lacks_tensors_or_has_others_is_refused_and_the_model_stays(place, tmp_path, change):
    moved(WeightModel(loaded(place), "bitfit")).save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    if change == "less":
        del tensors[name]
    elif change == "more":
        tensors["model.norm.weight"] = torch.ones(16)
    else:
        tensors[name] = torch.ones(3)
    save_file(tensors, file)
    base = loaded(place)
    before = [name for name, _ in base.model.named_parameters()]
    with pytest.raises(InputError, match="shape" if change == "misshaped" else "name different tensors"):
        with_adapter(base, read_adapter(tmp_path / "out"))
    assert [name for name, _ in base.model.named_parameters()] == before
