"""On top of a PEFT LoRA: both act, both are saved in one folder, and each can be taken off."""

from __future__ import annotations

import json
import re

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from steerscope.errors import InputError
from steerscope.models import true_float64
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from tests.steering.cases import close, hooks_of, padded, prompts, randomise
from tests.tiny import tiny_model

BATCH = padded(prompts(), "left")
TARGETS = {"llama": ["q_proj", "o_proj", "down_proj"], "gpt2": ["attn.c_proj", "mlp.c_proj"]}


def with_lora(family: str = "llama", dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    # With a task PEFT's wrapper calls the model's forward past its hooks, without one it calls the model.
    task = "CAUSAL_LM" if family == "llama" else None
    config = peft.LoraConfig(r=2, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2", task_type=task)
    wrapped = peft.get_peft_model(tiny_model(family, dtype), config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return wrapped


@pytest.mark.parametrize("family", TARGETS)
@torch.no_grad()
def test_lora_is_active_underneath_and_everything_comes_off(family):
    wrapped = with_lora(family)
    base = wrapped.get_base_model()
    with wrapped.disable_adapter():
        plain = wrapped(**BATCH).logits
    lora = wrapped(**BATCH).logits
    steering = randomise(get_steering_model(wrapped, SteeringConfig("resid_post", rank=2)).eval())
    both = steering(**BATCH).logits
    with steering.disable_adapter(keep_lora=True):
        assert torch.equal(steering(**BATCH).logits, lora)
    with steering.disable_adapter():
        assert torch.equal(steering(**BATCH).logits, plain)
    assert torch.equal(steering(**BATCH).logits, both)
    for one, other in [(plain, lora), (lora, both), (plain, both)]:
        assert (one - other).abs().max() > 1e-3
    assert steering.unload() is wrapped
    assert torch.equal(wrapped(**BATCH).logits, lora)
    assert torch.equal(wrapped.unload()(**BATCH).logits, plain)
    assert hooks_of(base) == 0


@torch.no_grad()
def test_the_sum_is_that_on_merged_weights():
    """The adapter reads the stream with the LoRA in it, as it does when the LoRA is merged into the weights."""
    steering = randomise(
        get_steering_model(with_lora(dtype=torch.float64), SteeringConfig("0.mlp_out", rank=2, dtype="float64"))
    )
    expected = steering.eval()(**BATCH).logits
    merged = with_lora(dtype=torch.float64).merge_and_unload()
    again = randomise(get_steering_model(merged, SteeringConfig("0.mlp_out", rank=2, dtype="float64"))).eval()
    close(again(**BATCH).logits, expected)


@pytest.mark.parametrize("family", TARGETS)
def test_saved_and_loaded_together(tmp_path, family):
    steering = randomise(get_steering_model(with_lora(family), SteeringConfig("resid_post", rank=2)).eval())
    trained = {name for name, p in steering.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any(name.startswith("edits.") for name in trained)
    assert not any("base_layer" in name or "embed" in name for name in trained)
    steering.save_pretrained(tmp_path)
    names = {"adapter_config.json", "adapter_model.safetensors", "lora", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora"] == "default"
    with torch.no_grad():
        expected = steering(**BATCH).logits
        again = SteeringModel.from_pretrained(tiny_model(family), tmp_path).eval()
        assert torch.equal(again(**BATCH).logits, expected)
        assert not any(p.requires_grad for p in again.parameters())
        onward = SteeringModel.from_pretrained(tiny_model(family), tmp_path, is_trainable=True)
        assert {name for name, p in onward.named_parameters() if p.requires_grad} == trained


def test_the_lora_is_part_of_the_file(tmp_path):
    steering = get_steering_model(with_lora(), SteeringConfig("resid_post", rank=2))
    steering.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="got PeftModelForCausalLM, which has an adapter already"):
        SteeringModel.from_pretrained(with_lora(), tmp_path)
    with pytest.raises(InputError, match="has fingerprint"):
        SteeringModel.from_pretrained(tiny_model("llama", seed=3), tmp_path)
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(weights)
    gone = sorted(tensors)[0]
    save_file({name: value for name, value in tensors.items() if name != gone}, weights)
    with pytest.raises(InputError, match=f"lacks {re.escape(gone)} and has unknown nothing"):
        SteeringModel.from_pretrained(tiny_model("llama"), tmp_path)
    weights.write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"lora/adapter_model.safetensors' is no whole safetensors file"):
        SteeringModel.from_pretrained(tiny_model("llama"), tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors; copy the whole folder"):
        SteeringModel.from_pretrained(tiny_model("llama"), tmp_path)


def test_a_named_lora_and_several():
    wrapped = with_lora()
    wrapped.add_adapter("second", peft.LoraConfig(r=2, target_modules=["up_proj"]))
    steering = get_steering_model(wrapped, SteeringConfig("resid_post", rank=2))
    wrapped.base_model.set_adapter(["default", "second"])
    with pytest.raises(InputError, match=r"has the adapters \['default', 'second'\] active; expected one"):
        steering.save_pretrained("nowhere")


def test_a_named_lora_is_saved_under_its_name(tmp_path):
    wrapped = with_lora()
    wrapped.add_adapter("second", peft.LoraConfig(r=2, target_modules=["up_proj"]))
    wrapped.set_adapter("second")
    steering = randomise(get_steering_model(wrapped, SteeringConfig("resid_post", rank=2)).eval())
    for name, parameter in steering.named_parameters():
        if "second" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(4))
    steering.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = steering(**BATCH).logits
        again = SteeringModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
        assert torch.equal(again(**BATCH).logits, expected)


@torch.no_grad()
def test_generation_on_top_of_a_lora():
    steering = randomise(get_steering_model(with_lora(), SteeringConfig("resid_post", rank=2, positions="prompt")))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    steering.eval()
    alone = [steering.generate(input_ids=row[None], use_cache=False, **options)[0, len(row) :] for row in prompts()]
    batch = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    together = steering.generate(**batch, **options)[:, BATCH["input_ids"].shape[1] :]
    assert torch.equal(together, torch.stack(alone))
    beams = steering.generate(**batch, num_beams=2, **options)
    assert beams.shape == (3, 10)


@pytest.mark.filterwarnings("ignore:linear maps at . sites got a bias:UserWarning")
@pytest.mark.parametrize("family", TARGETS)
@torch.no_grad()
def test_a_lora_is_merged_with_the_adapter(family):
    wrapped = with_lora(family, torch.float64)
    base = wrapped.get_base_model()
    with true_float64(base):
        config = SteeringConfig(("0.mlp_out", "0.attn_heads", "1.mlp_in"), rank=2, dtype="float64")
        steering = randomise(get_steering_model(wrapped, config).eval())
        expected = steering(**BATCH).logits
        merged = steering.merge_and_unload(make_biases=True)
        assert merged is base
        assert not any("lora" in name or "base_layer" in name for name, _ in merged.named_modules())
        assert hooks_of(merged) == 0
        close(merged(**BATCH).logits, expected)


def test_a_merge_that_is_refused_merges_no_lora():
    wrapped = with_lora()
    before = wrapped(**BATCH).logits
    steering = get_steering_model(wrapped, SteeringConfig("resid_post", rank=2))
    with pytest.raises(InputError, match="acts on the whole stream"):
        steering.merge_and_unload(make_biases=True)
    assert steering.unload() is wrapped
    assert torch.equal(wrapped(**BATCH).logits, before)
    assert not any(getattr(module, "merged", False) for module in wrapped.modules())


def refused(wrapped, message: str) -> None:
    """A merge is refused, and the model is what it was."""
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    before = wrapped(**inputs).logits
    steering = get_steering_model(wrapped, SteeringConfig("mlp_in", rank=2, bias=False))
    with pytest.raises(InputError, match=message):
        steering.merge_and_unload(make_biases=True)
    assert torch.equal(steering.unload()(**inputs).logits, before)


@torch.no_grad()
def test_what_peft_cannot_merge_or_does_not_use_is_refused():
    off = with_lora()
    off.base_model.disable_adapter_layers()
    with pytest.raises(InputError, match="is switched off"):
        get_steering_model(off, SteeringConfig("mlp_in", rank=2))
    config = peft.LoraConfig(r=2, target_modules=TARGETS["llama"], lora_bias=True)
    with pytest.warns(match="lora_bias"):
        biased = peft.get_peft_model(tiny_model("llama"), config).eval()
    refused(biased, "writes a bias")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    refused(
        peft.get_peft_model(tiny_model("llama"), prompt).eval(),
        "cannot hold the PEFT adapter underneath .PROMPT_TUNING.",
    )


@pytest.mark.filterwarnings("ignore:linear maps at . sites got a bias:UserWarning")
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"target_modules": ["up_proj"]}])
@torch.no_grad()
def test_other_loras_are_merged_too(options):
    config = peft.LoraConfig(**{"r": 2, "target_modules": TARGETS["llama"], "init_lora_weights": False} | options)
    wrapped = peft.get_peft_model(tiny_model("llama", torch.float64), config).to(torch.float64).eval()
    with true_float64(wrapped.get_base_model()):
        edits = SteeringConfig(("0.mlp_out", "1.mlp_in"), rank=2, dtype="float64")
        steering = randomise(get_steering_model(wrapped, edits).eval())
        expected = steering(**BATCH).logits
        close(steering.merge_and_unload(make_biases=True)(**BATCH).logits, expected)


def test_layers_of_peft_without_its_wrapper_are_refused():
    model = tiny_model("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=TARGETS["llama"]))
    with pytest.raises(InputError, match="layers of PEFT in it but not its wrapper"):
        get_steering_model(model, SteeringConfig("resid_post", rank=2))


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify a model with PEFT:UserWarning", "ignore:Already found a `peft_config`"
)
@pytest.mark.parametrize("beneath", [True, False])
def test_other_layers_put_on_after_the_edits_are_refused(tmp_path, beneath):
    steering = get_steering_model(with_lora() if beneath else tiny_model("llama"), SteeringConfig("resid_post", rank=2))
    more = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    wrapped = peft.get_peft_model(steering, more, adapter_name="late")
    with pytest.raises(InputError, match="Wrap the plain model with PEFT first"):
        wrapped.train()(**BATCH)
    with pytest.raises(InputError, match="Wrap the plain model with PEFT first"):
        steering.save_pretrained(tmp_path / "adapter")


@torch.no_grad()
def test_a_load_that_is_refused_leaves_no_lora(tmp_path):
    steering = get_steering_model(with_lora(), SteeringConfig("resid_post", rank=2))
    steering.save_pretrained(tmp_path / "adapter")
    model = tiny_model("llama")
    get_steering_model(model, SteeringConfig("resid_post", rank=2))
    before = model(**BATCH).logits
    with pytest.raises(InputError, match="steered already"):
        SteeringModel.from_pretrained(model, tmp_path / "adapter")
    assert torch.equal(model(**BATCH).logits, before)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_lora_put_on_after_the_edits_is_refused(tmp_path):
    steering = get_steering_model(tiny_model("llama"), SteeringConfig("attn_heads", rank=2))
    wrapped = peft.get_peft_model(steering, peft.LoraConfig(r=2, target_modules=TARGETS["llama"]))
    with pytest.raises(InputError, match="Wrap the plain model with PEFT first"):
        wrapped.train()(**BATCH)
    with pytest.raises(InputError, match="Wrap the plain model with PEFT first"):
        steering.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    for evaluated in (wrapped.eval(), steering):  # the edit would read heads that the LoRA has not changed yet
        with torch.no_grad(), pytest.raises(InputError, match=r"of block 0 was replaced after the model was steered"):
            evaluated(**BATCH)
    with steering.disable_adapter():
        steering(**BATCH)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_of_both(reentrant):
    def gradients(steering):
        steering.zero_grad()
        steering(**BATCH).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in steering.named_parameters() if p.grad is not None}

    config = SteeringConfig(("1.mlp_hidden", "1.resid_post"), rank=2, dtype="float64")
    steering = randomise(get_steering_model(with_lora(dtype=torch.float64), config)).train()
    expected = gradients(steering)
    assert any("layers.0" in name and "lora_A" in name for name in expected)
    steering.activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(steering)
    assert set(found) == set(expected)
    for name in expected:
        close(found[name], expected[name])
