"""The door between PEFT and edits: several adapters, flags set by hand, biases, files of other forms."""

from __future__ import annotations

import json
import pickle
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from steerscope.errors import InputError
from steerscope.models import wrap_model
from steerscope.models.weight_hashes import fingerprint_of, own_weights
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from tests.steering.cases import padded, prompts, randomise
from tests.tiny import tiny_model, tiny_tokenizer

BATCH = padded(prompts(), "left")
EDITS = SteeringConfig(("0.mlp_out", "1.resid_post"), rank=2)
TARGETS = ["q_proj", "o_proj", "down_proj"]
BIASED = {"attention_bias": True, "mlp_bias": True}


def with_lora(model=None, **options):
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 2, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | options)
    return peft.get_peft_model(tiny_model("llama") if model is None else model, config).eval()


def moved(model, size: float = 0.1):
    """The model with everything trainable in it moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model):
    return model(**BATCH).logits


def trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def refused(model, message: str) -> None:
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(InputError, match=message):
        get_steering_model(model, EDITS)
    assert [p.requires_grad for p in model.parameters()] == flags


# --- what is trained ---


def test_several_active_adapters_are_refused_before_training():
    model = with_lora()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["up_proj"]))
    get_steering_model(model, EDITS).unload()
    model.base_model.set_adapter(["default", "second"])
    refused(model, r"PEFT has the adapters \['default', 'second'\] active; expected one")


def test_another_adapter_that_is_trained_too_is_refused():
    model = with_lora()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["up_proj"]))
    for name, parameter in model.named_parameters():
        if ".second." in name:
            parameter.requires_grad_(True)
    refused(model, r"up_proj.lora_A.second.weight' and 3 more .* does not save them with its adapter 'default'")


def test_own_weights_made_trainable_by_hand_are_refused():
    model = with_lora()
    model.get_base_model().lm_head.weight.requires_grad_(True)
    refused(model, "lm_head.weight' and 0 more .* Freeze them, or name their modules in modules_to_save")


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_what_was_frozen_by_hand_stays_frozen_and_is_in_checkpoints(factor):
    def half_frozen(model):
        for name, parameter in model.named_parameters():
            if factor in name:
                parameter.requires_grad_(False)
        return model

    model = half_frozen(moved(with_lora()))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    steering = randomise(get_steering_model(model, EDITS).eval())
    assert not any(factor in name for name in trained(steering))
    expected, state = logits(steering), {name: value.clone() for name, value in steering.state_dict().items()}
    again = get_steering_model(half_frozen(with_lora(init_lora_weights="gaussian")), EDITS).eval()
    again.load_state_dict(state)
    assert torch.equal(logits(again), expected)
    # A checkpoint of an earlier version holds what is trained and no more.
    again.load_state_dict({name: value for name, value in state.items() if factor not in name})
    with pytest.raises(InputError, match="the checkpoint lacks"):
        again.load_state_dict({name: value for name, value in state.items() if "lora_" not in name})
    assert steering.unload() is model
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_an_adapter_for_inference_stays_frozen_and_comes_back(tmp_path):
    moved(with_lora()).save_pretrained(tmp_path / "lora")
    model = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "lora")
    steering = randomise(get_steering_model(model, EDITS).eval())
    assert all(name.startswith("edits.") for name in trained(steering))
    assert all(name.startswith("edits.") for name in set(steering.state_dict()) - {"adapter_config"})
    steering.save_pretrained(tmp_path / "both")
    assert torch.equal(logits(SteeringModel.from_pretrained(tiny_model("llama"), tmp_path / "both")), logits(steering))
    assert not trained(steering.unload())


def test_a_plain_model_gets_its_flags_back():
    model = tiny_model("llama")
    model.model.embed_tokens.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in get_steering_model(model, EDITS).unload().parameters()] == flags


def test_mixed_merged_and_switched_off_adapters_are_refused():
    mixed = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=TARGETS), mixed=True)
    refused(mixed, "PeftMixedModel cannot be saved by PEFT")
    model = with_lora()
    model.merge_adapter()
    refused(model, "is merged into the weights.*unmerge_adapter")
    model.unmerge_adapter()
    model.base_model.disable_adapter_layers()
    refused(model, "is switched off; loaded again, it would act")
    model.base_model.enable_adapter_layers()
    steering = get_steering_model(model, EDITS)
    model.merge_adapter()
    with pytest.raises(InputError, match="is merged into the weights"):
        steering.save_pretrained("nowhere")


# --- identity ---


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"modules_to_save": ["lm_head", "norm"]}, {"trainable_token_indices": [3, 4]}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_fingerprint_ignores_what_peft_adds_and_sees_what_changed(options):
    plain = tiny_model("llama")
    model = moved(with_lora(**options))
    assert [name for name, _ in own_weights(model)] == [name for name, _ in plain.named_parameters()]
    assert fingerprint_of(model) == fingerprint_of(plain)
    dict(own_weights(model))["model.layers.1.mlp.down_proj.weight"].data.mul_(1.01)
    assert fingerprint_of(model) != fingerprint_of(plain)


def with_trained_biases(folder) -> SteeringModel:
    model = moved(with_lora(tiny_model("llama", **BIASED), bias="all"))
    steering = randomise(get_steering_model(model, EDITS).eval())
    steering.save_pretrained(folder)
    return steering


def test_biases_trained_in_place_are_the_adapters(tmp_path):
    steering = with_trained_biases(tmp_path)
    own = dict(own_weights(steering))
    original = dict(own_weights(tiny_model("llama", **BIASED)))
    changed = {name for name, value in own.items() if not torch.equal(value, original[name])}
    assert changed == {name for name in own if name.endswith(".bias")}
    other = tiny_model("llama", **BIASED)
    with torch.no_grad():
        for name, value in other.named_parameters():
            if name.endswith(".bias"):
                value.add_(1)
    # Whatever the biases were, those of the adapter take their place; other weights must be the same.
    assert torch.equal(logits(SteeringModel.from_pretrained(other, tmp_path)), logits(steering))
    other = tiny_model("llama", **BIASED)
    other.lm_head.weight.data.mul_(1.01)
    with pytest.raises(InputError, match="has fingerprint"):
        SteeringModel.from_pretrained(other, tmp_path)


def test_a_file_from_when_biases_stayed_loads(tmp_path):
    with_trained_biases(tmp_path)
    base = tiny_model("llama", **BIASED)
    weights, told = (
        tmp_path / "lora" / "adapter_model.safetensors",
        json.loads((tmp_path / "adapter_config.json").read_text()),
    )
    own = dict(base.named_parameters())
    kept = {
        name: own[name.removeprefix("base_model.model.").replace(".base_layer.", ".")].detach().clone()
        if name.endswith(".bias")
        else value
        for name, value in load_file(weights).items()
    }
    save_file(kept, weights)
    told["base_model"]["fingerprint"] = fingerprint_of(base)
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    SteeringModel.from_pretrained(base, tmp_path)


def test_a_refused_load_puts_biases_back(tmp_path):
    with_trained_biases(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if not name.endswith(".b")}, weights)
    base = tiny_model("llama", **BIASED)
    before = logits(base)
    with pytest.raises(InputError, match=r"adapter_model.safetensors lacks 0.mlp_out.b"):
        SteeringModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(base), before)
    lora = tmp_path / "lora" / "adapter_model.safetensors"
    save_file(
        {name: value for name, value in load_file(lora).items() if "layers.0.mlp.down_proj.lora_A" not in name}, lora
    )
    with pytest.raises(InputError, match=r"lacks base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"):
        SteeringModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(base), before)


def test_a_refused_load_of_virtual_tokens_says_what_is_wrong(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_steering_model(peft.get_peft_model(tiny_model("llama"), config), EDITS).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if not name.endswith(".b")}, weights)
    base = tiny_model("llama")
    before = logits(base)
    with pytest.raises(InputError, match=r"adapter_model.safetensors lacks 0.mlp_out.b"):
        SteeringModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(base), before)


# --- files ---


class Trap:
    """Unpickled, it fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_scale_set_at_run_time_is_not_dropped(tmp_path):
    from peft.helpers import rescale_adapter_scale

    model = get_steering_model(with_lora(use_rslora=True, alpha_pattern={"q_proj": 5}), SteeringConfig("resid_post"))
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    model.save_pretrained(tmp_path / "good")
    layers[-1].set_scale("default", 3.0)
    with pytest.raises(InputError, match=r"are scaled by .* where its configuration says .* PEFT does not save"):
        model.save_pretrained(tmp_path / "scaled")
    layers[-1].set_scale("default", 1.0)
    model.save_pretrained(tmp_path / "back")
    with rescale_adapter_scale(model.base_model, 0.5), pytest.raises(InputError, match="are scaled by"):
        model.save_pretrained(tmp_path / "scaled")
    assert not (tmp_path / "scaled").exists()


def test_a_lora_that_was_taken_out_is_not_saved(saved):
    wrapped = with_lora()
    model = get_steering_model(wrapped, SteeringConfig("resid_post"))
    before = sorted(path for path in saved.rglob("*"))
    with model.disable_adapter(), pytest.raises(InputError, match=r"inside disable_adapter\(\).*Leave disable_adapter"):
        model.save_pretrained(saved / "ours")
    wrapped.unload()
    with pytest.raises(InputError, match="layers of PEFT were taken out of this model"):
        model.save_pretrained(saved / "ours")
    assert sorted(path for path in saved.rglob("*")) == before
    model.unload()
    with pytest.raises(InputError, match="layers were taken out of the model inside its wrapper"):
        get_steering_model(wrapped, SteeringConfig("resid_post"))


@pytest.fixture
def saved(tmp_path):
    moved(with_lora()).save_pretrained(tmp_path / "theirs")
    get_steering_model(moved(with_lora()), EDITS).save_pretrained(tmp_path / "ours")
    return tmp_path


def forms(folder, where):
    """Other forms of an adapter's weights, and what is said of each."""
    weights = folder / "adapter_model.safetensors"
    weights.unlink()
    yield "has no adapter_model.safetensors; copy the whole folder"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    yield "pytorch_model.bin, the weights of a whole model; give the folder as the model"
    (folder / "adapter_model-00001-of-00002.safetensors").touch()
    yield "but adapter_model-00001-of-00002.safetensors; weights in several files"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    yield r"are a pickle \(adapter_model.bin.*save_pretrained\(folder, safe_serialization=True\)"


def test_other_forms_of_weights_are_named_and_no_pickle_is_read(saved):
    from steerscope.experiments.evaluation.adapters import read_adapter

    for message in forms(saved / "theirs", "theirs"):
        with pytest.raises(InputError, match=message):
            read_adapter(saved / "theirs")
    shutil.copytree(saved / "ours", saved / "copy")
    for message in forms(saved / "copy" / "lora", "lora"):
        with pytest.raises(InputError, match=message):
            SteeringModel.from_pretrained(tiny_model("llama"), saved / "copy")
    for message in forms(saved / "ours", "ours"):
        with pytest.raises(InputError, match=message):
            SteeringModel.from_pretrained(tiny_model("llama"), saved / "ours")
        with pytest.raises(InputError, match=message):
            read_adapter(saved / "ours")


def test_a_folder_around_the_adapter_or_of_a_model_is_told(tmp_path):
    from steerscope.experiments.evaluation.adapters import read_adapter

    model = with_lora()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["up_proj"]))
    model.save_pretrained(tmp_path / "named", selected_adapters=["second"])
    tiny_model("llama").save_pretrained(tmp_path / "whole")
    for folder, message in [("named", "Its subfolder second has one: give that"), ("whole", "give it as the model")]:
        with pytest.raises(InputError, match=message):
            read_adapter(tmp_path / folder)
        with pytest.raises(InputError, match=message):
            SteeringModel.from_pretrained(tiny_model("llama"), tmp_path / folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"peft_type": "TOMORROW", "peft_version": "9.1"},
            r"'TOMORROW', which the installed PEFT .* PEFT 9.1 or newer",
        ),
        ({"thicken": 2, "peft_version": "9.1"}, r"sets thicken=2, which the installed PEFT .* would ignore"),
        ({"thicken": None, "thin": False, "list": []}, None),
        ({"megatron_config": {"some": 1}, "megatron_core": "antigravity"}, "sets megatron_config, by which PEFT"),
        ({"r": "two"}, "cannot load the LoRA|is not of model"),
    ],
)
def test_configurations_of_other_versions(saved, changes, message):
    from steerscope.experiments.evaluation.adapters import read_adapter, with_adapter

    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer(), name="tiny")
    for folder in ("theirs", "ours/lora"):
        path = saved / folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    if message is None:
        with_adapter(loaded, read_adapter(saved / "theirs"))
        SteeringModel.from_pretrained(tiny_model("llama"), saved / "ours")
        return
    with pytest.raises(InputError, match=message):
        with_adapter(loaded, read_adapter(saved / "theirs"))
    with pytest.raises(InputError, match=message):
        SteeringModel.from_pretrained(tiny_model("llama"), saved / "ours")


def test_a_peft_that_is_on_the_path_and_not_installed_is_named_by_its_own_version(monkeypatch, tmp_path):
    from importlib import metadata

    from steerscope.steering.peft_files import require_readable

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    with pytest.raises(InputError, match=r"which the installed PEFT \(\d+\.\d+"):
        require_readable({"peft_type": "TOMORROW"}, tmp_path / "adapter_config.json")
