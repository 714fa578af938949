"""Several named adapters on one model, and the strength of what they add."""

from __future__ import annotations

import json
import threading

import peft
import pytest
import torch

from steerscope.errors import InputError
from steerscope.models import true_float64
from steerscope.steering import FAMILIES, SteeringConfig, SteeringModel, get_steering_model
from tests.steering.cases import SETTINGS, close, config_of, hooks_of, padded, prompts, randomise, steered
from tests.tiny import tiny_model

BATCH = padded(prompts(), "right")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


def two() -> SteeringModel:
    """A model with two adapters, of other sites, families and positions; the first acts."""
    model = steered("linear")
    model.add_adapter("other", config_of("loreft", positions="first:2"))
    model.set_adapter("other")
    randomise(model, seed=1)
    model.set_adapter("default")
    return model


# --- strength ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_strength_scales_what_the_edit_adds_exactly(family):
    """The model runs with ``x + s (edit(x) - x)`` written out by hand in place of the edit."""
    model = steered(family)
    edits = {site: model.edit_at(site) for site in model.sites}
    whole = logits(model)
    for strength in (0.5, -1.0, 3.0):
        model.set_strength(strength)
        found = logits(model)
        originals = {site: edit.delta for site, edit in edits.items()}
        for edit in edits.values():  # at strength 1 again
            edit.delta = lambda x, edit=edit, strength=strength: strength * type(edit).delta(edit, x)
        model.set_strength(1)
        close(found, logits(model), 1e-12)
        assert (found - whole).abs().max() > 1e-3
        for site, edit in edits.items():
            edit.delta = originals[site]
    model.set_strength(0)
    with model.disable_adapter():
        base = logits(model)
    assert torch.equal(logits(model), base)
    model.set_strength(1)
    assert torch.equal(logits(model), whole)


@torch.no_grad()
def test_a_strength_inside_a_context_is_of_its_thread_and_is_not_kept(tmp_path):
    model = steered("linear")
    whole, found = logits(model), {}
    model.set_strength(0.25)
    quarter = logits(model)
    with model.at_strength(1.0):
        assert torch.equal(logits(model), whole)
        with model.at_strength(0.25):
            assert torch.equal(logits(model), quarter)
        thread = threading.Thread(target=lambda: found.update(there=logits(model)))
        thread.start()
        thread.join()
        assert model.strength == 1.0
        model.save_pretrained(tmp_path)
    assert torch.equal(found["there"], quarter)
    assert model.strength == 0.25
    assert json.loads((tmp_path / "adapter_config.json").read_text())["strength"] == 0.25


@torch.no_grad()
def test_strength_is_saved_and_merged(tmp_path):
    model = steered("linear", sites="0.mlp_out", bias=False)
    model.save_pretrained(tmp_path / "whole")
    assert "strength" not in json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    model.set_strength(-0.5)
    expected = logits(model)
    model.save_pretrained(tmp_path / "half")
    base = model.unload()
    again = SteeringModel.from_pretrained(base, tmp_path / "half")
    assert again.strength == -0.5
    assert torch.equal(logits(again), expected)
    with true_float64(base):
        expected = logits(again)
        close(logits(again.merge_and_unload()), expected)


def test_gradients_carry_the_strength_also_when_blocks_run_again():
    grads = []
    for checkpointed in (False, True):
        model = steered("linear").train()
        if checkpointed:
            model.activation_checkpointing_enable()
        with model.at_strength(2.0):
            loss = model(**BATCH).logits.square().mean()
        loss.backward()  # outside of the context: the pass keeps its strength
        grads.append([p.grad.clone() for p in model.edits.parameters()])
    for one, other in zip(*grads, strict=True):
        close(other, one)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True, torch.tensor(2.0)])
def test_what_is_no_strength_is_refused(value):
    model = steered("vector")
    with pytest.raises(InputError, match="a strength is a finite number"):
        model.set_strength(value)
    with pytest.raises(InputError, match="a strength is a finite number"), model.at_strength(value):
        pass


def test_a_damaged_strength_is_refused(tmp_path):
    model = steered("vector")
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "strength": "2"}))
    with pytest.raises(InputError, match="a strength is a finite number"):
        SteeringModel.from_pretrained(model.unload(), tmp_path)


# --- names -------------------------------------------------------------------------------------------------


def test_each_adapter_acts_as_it_does_alone():
    alone = {"default": logits(steered("linear")), "other": logits(steered("loreft", seed=1, positions="first:2"))}
    model = two()
    assert model.adapter_names == ["default", "other"]
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        assert model.active_adapter == name
        assert model.active_adapters == [name]
        assert torch.equal(logits(model), alone[name])
    assert model.steering_config.family == "linear"
    assert torch.equal(
        model.generate(BATCH["input_ids"][:1], max_new_tokens=3, pad_token_id=2),
        steered("linear").generate(BATCH["input_ids"][:1], max_new_tokens=3, pad_token_id=2),
    )


def test_a_model_with_several_comes_back_untouched():
    model = tiny_model("llama", torch.float64)
    before = logits(model)
    steering = get_steering_model(model, config_of("linear"))
    steering.add_adapter("other", config_of("vector"))
    steering.delete_adapter("other")
    assert steering.adapter_names == ["default"]
    steering.add_adapter("other", config_of("nonlinear"))
    steering.set_adapter("other")
    assert steering.unload() is model
    assert hooks_of(model) == 0
    assert torch.equal(logits(model), before)


def test_the_adapter_that_acts_is_trained_and_counted():
    model = two()
    names = set(model.state_dict()) - {"adapter_config"}
    assert names == {f"edits.{site}.{part}" for site in ("0-resid_post", "1-mlp_hidden") for part in ("D", "U", "b")}
    kept = {name: value.clone() for name, value in model.adapter("other").tensors().items()}
    count = model.get_nb_trainable_parameters()[0]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**BATCH).logits.square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, kept[name]) for name, value in model.adapter("other").tensors().items())
    model.set_adapter("other")
    assert model.get_nb_trainable_parameters()[0] != count
    assert not names <= set(model.state_dict())


def test_all_follow_the_model(tmp_path):
    model = two().to(torch.float32)
    meta = model.to("meta")
    assert {p.device.type for p in meta.adapter("other").edits.parameters()} == {"meta"}
    assert {p.dtype for p in meta.adapter("other").edits.parameters()} == {torch.float64}  # an adapter keeps its own


def test_saved_and_loaded_as_peft_does(tmp_path):
    model = two()
    model.set_strength(2.0, "other")
    expected = {}
    for name in model.adapter_names:
        model.set_adapter(name)
        expected[name] = logits(model)
    model.save_pretrained(tmp_path / "both")
    assert (tmp_path / "both" / "adapter_config.json").is_file()
    assert (tmp_path / "both" / "other" / "adapter_config.json").is_file()
    model.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    assert not (tmp_path / "one" / "adapter_config.json").exists()
    base = model.unload()

    again = SteeringModel.from_pretrained(base, tmp_path / "both", adapter_name="first")
    again.load_adapter(tmp_path / "one" / "other", "other")
    assert again.active_adapter == "first"  # as PEFT: what is loaded does not act yet
    assert torch.equal(logits(again), expected["default"])
    again.set_adapter("other")
    assert torch.equal(logits(again), expected["other"])
    assert again.get_nb_trainable_parameters()[0] == 0
    again.load_adapter(tmp_path / "both" / "other", "to_train", is_trainable=True)
    again.set_adapter("to_train")
    assert again.get_nb_trainable_parameters()[0] > 0
    with pytest.raises(InputError, match="Its subfolder other has one: give that"):
        again.load_adapter(tmp_path / "one", "third")


def test_a_run_stands_for_the_adapter_that_it_trained(tmp_path):
    model = steered("linear")
    expected = logits(model)
    model.save_pretrained(tmp_path / "run" / "adapter")
    again = SteeringModel.from_pretrained(model.unload(), tmp_path / "run")
    assert torch.equal(logits(again), expected)


def test_an_adapter_of_another_model_is_not_put_beside(tmp_path):
    other = steered("vector", tiny_model("llama", torch.float64, seed=1))
    other.save_pretrained(tmp_path / "other")
    model = steered("linear")
    hooks = hooks_of(model.base_model)
    with pytest.raises(InputError, match="has fingerprint"):
        model.load_adapter(tmp_path / "other", "other")
    assert model.adapter_names == ["default"]
    assert hooks_of(model.base_model) == hooks
    model.load_adapter(tmp_path / "other", "other", check_weights=False)
    assert model.adapter_names == ["default", "other"]


def test_adapters_on_and_beside_a_lora(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    steered("vector").save_pretrained(tmp_path / "plain")
    wrapped = peft.get_peft_model(tiny_model("llama", torch.float64), config)
    model = get_steering_model(wrapped, config_of("linear"))
    model.add_adapter("other", config_of("vector"))
    model.set_adapter("other")
    assert model.active_adapter == "other"
    model.save_pretrained(tmp_path / "lora")
    assert (tmp_path / "lora" / "other" / "lora" / "adapter_config.json").is_file()
    with pytest.raises(InputError, match="this model has an adapter of PEFT underneath"):
        model.load_adapter(tmp_path / "plain", "plain")
    plain = steered("vector")
    with pytest.raises(InputError, match="was trained on a LoRA of its own"):
        plain.load_adapter(tmp_path / "lora", "lora_one")


def test_a_swap_does_not_reach_a_pass_that_has_begun():
    model = two()
    expected = logits(model)
    block = model.site_map.blocks[1].module
    handle = block.register_forward_pre_hook(lambda module, args: model.set_adapter("other"))
    found = logits(model)
    handle.remove()
    assert torch.equal(found, expected)
    assert model.active_adapter == "other"


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda m: m.add_adapter("other", config_of("vector")), "has an adapter 'other' already"),
        (lambda m: m.add_adapter("a/b", config_of("vector")), "cannot be called 'a/b'"),
        (lambda m: m.add_adapter("lora", config_of("vector")), "cannot be called 'lora'"),
        (lambda m: m.add_adapter(config_of("vector"), "name"), "expected a name and a SteeringConfig"),
        (lambda m: m.add_adapter("third", config_of("vector", sites="9.mlp_out")), "layers 0 to 1"),
        (lambda m: m.set_adapter("othre"), "no adapter 'othre'. Did you mean 'other'"),
        (lambda m: m.set_adapter(["default", "other"]), "the name of one adapter"),
        (lambda m: m.set_adapter(None), r"got None; expected a name. disable_adapter\(\)"),
        (lambda m: m.delete_adapter("default"), "'default' acts; set_adapter"),
        (lambda m: m.set_strength(2, "none"), "no adapter 'none'"),
        (lambda m: m.save_pretrained("x", selected_adapters=["none"]), "no adapter 'none'"),
        (lambda m: m.save_pretrained("x", selected_adapters=[]), "names none"),
        (lambda m: m.save_pretrained("x", max_shard_size="1GB"), "got max_shard_size, which would have no effect"),
        (lambda m: m.save_pretrained("x", safe_serialization=False), "got safe_serialization=False"),
        (lambda m: m.merge_adapter(), r"merge_adapter\(\) is for adapters of PEFT.*use merge_and_unload"),
        (lambda m: m.disable_adapters(), r"use disable_adapter\(\)"),
        (lambda m: m.add_weighted_adapter(["a"], [1.0], "b"), "one adapter per mixture"),
    ],
)
def test_what_does_not_go_is_said_in_one_sentence(tmp_path, monkeypatch, do, message):
    monkeypatch.chdir(tmp_path)
    model = two()
    with pytest.raises(InputError, match=message):
        do(model)
    assert model.adapter_names == ["default", "other"]
    assert not list(tmp_path.iterdir())


def test_every_name_of_pefts_models_is_there_or_says_what_is():
    from peft import PeftModel

    model = two()
    missing = []
    for name in ["peft_config", *(name for name in dir(PeftModel) if not name.startswith("_"))]:
        if not hasattr(model, name):
            missing.append(name)
            with pytest.raises(AttributeError, match=r"this one has steerscope's edits; expected steering_config"):
                getattr(model, name)
    assert {"peft_config", "get_layer_status"} <= set(missing)
    assert not hasattr(model, "peft_config")  # trainers ask, and take a model that has it for PEFT's
    with pytest.raises(AttributeError, match="LlamaForCausalLM' object has no attribute 'no_such_name'"):
        _ = model.no_such_name


def test_the_names_of_the_settings_are_those_of_the_families():
    assert set(SETTINGS) == set(FAMILIES)
    assert SteeringConfig("0.mlp_out").family in FAMILIES
