"""The wrapper's habits: off and on, counted, taken off without a trace, and no gradients where nothing is trained."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from transformers import GenerationConfig

from steerscope.errors import InputError
from steerscope.models import reading
from steerscope.steering import SteeringConfig, get_steering_model, steered_by
from tests.steering.cases import SETTINGS, hooks_of, padded, prompts, randomise, steered
from tests.tiny import FAMILIES, LAYOUTS, tiny_model

BATCH = padded(prompts(), "left")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_base_is_bit_identical_after_unload_and_hooks_of_others_stay(family):
    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert any(flags.values())
    plain = model(**BATCH).logits
    calls: list[str] = []
    others = [
        next(iter(model.modules())).register_forward_hook(lambda *_: calls.append("model")),
        model.get_decoder().register_forward_pre_hook(lambda *_: calls.append("decoder")),
    ]
    count = hooks_of(model)
    kinds = ["attn_heads", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "resid_post"]
    steering = randomise(get_steering_model(model, SteeringConfig(tuple(kinds))).eval())
    assert not torch.equal(steering(**BATCH).logits, plain)
    with steering.disable_adapter():
        assert torch.equal(steering(**BATCH).logits, plain)
    assert not torch.equal(steering(**BATCH).logits, plain)
    assert steering.unload() is model
    assert hooks_of(model) == count
    calls.clear()
    assert torch.equal(model(**BATCH).logits, plain)
    assert sorted(calls) == ["decoder", "model"]
    for handle in others:
        handle.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_a_failed_construction_leaves_no_hooks():
    model = tiny_model("llama")
    with pytest.raises(InputError):
        get_steering_model(model, SteeringConfig("mlp_out", "loreft", rank=99))
    assert hooks_of(model) == 0
    assert all(p.requires_grad for p in model.parameters())


def test_two_adapters_at_once_are_refused_and_a_lost_one_is_found():
    model = tiny_model("llama")
    assert steered_by(model) is None
    lost = get_steering_model(model, SteeringConfig("mlp_out"))
    count = hooks_of(model)
    with pytest.raises(InputError, match=r"steered already.*steered_by\(model\)\.unload\(\)"):
        get_steering_model(model, SteeringConfig("mlp_out"))
    assert hooks_of(model) == count
    assert steered_by(model) is lost
    lost.unload()
    assert steered_by(model) is None
    assert hooks_of(model) == 0
    get_steering_model(model, SteeringConfig("mlp_out")).unload()


def test_copies_are_refused():
    """A copy's hooks would go on using the original's edits."""
    model = steered("vector")
    for way in (copy.deepcopy, copy.copy, pickle.dumps, lambda it: torch.save(it, io.BytesIO())):
        with pytest.raises(InputError, match="cannot be copied"):
            way(model)


def test_what_is_no_model_or_configuration_is_refused():
    model, config = tiny_model("llama"), SteeringConfig("resid_post")
    for wrong in ("M", None, 5, [model]):
        with pytest.raises(InputError, match="expected a causal language model of transformers, got"):
            get_steering_model(wrong, config)
        with pytest.raises(InputError, match="expected a causal language model of transformers, got"):
            steered_by(wrong)
    for wrong in ({"sites": "resid_post"}, None, "resid_post"):
        with pytest.raises(InputError, match="expected a SteeringConfig, got"):
            get_steering_model(model, wrong)


@pytest.mark.parametrize("family", LAYOUTS)
def test_no_gradient_reaches_below_the_lowest_site(family):
    model = get_steering_model(tiny_model(family), SteeringConfig("1.mlp_out"))
    with reading(model.site_map, ["0.resid_post", "1.attn_out", "1.resid_post"]) as found:
        model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    needs = {str(site): value.requires_grad for site, value in found.items()}
    assert needs == {"0.resid_post": False, "1.attn_out": False, "1.resid_post": True}
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"edits.1-mlp_out.{name}" for name in ("D", "U", "b")}
    assert not any(p.requires_grad for p in model.base_model.parameters())


def test_streams_are_not_kept_between_passes():
    model = steered("linear", sites=("resid_post", "resid_mid"))
    seen = []
    for block in model.site_map.blocks:
        block.module.register_forward_pre_hook(lambda _, args: seen.append(weakref.ref(args[0])))
    with torch.no_grad():
        model(**BATCH)
    assert len(seen) == 2
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_counts_and_their_line(capsys):
    model = get_steering_model(tiny_model("llama"), SteeringConfig("resid_post", rank=3))
    trained, total = model.get_nb_trainable_parameters()
    assert trained == 2 * (2 * 3 * 16 + 16)
    assert total == trained + sum(p.numel() for p in model.base_model.parameters())
    model.print_trainable_parameters()
    line = f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}"
    assert capsys.readouterr().out == line + "\n"


def test_published_parameter_counts():
    """LoReFT of rank r: r (2 d + 1) per site."""
    model = get_steering_model(tiny_model("llama"), SteeringConfig("resid_post", "loreft", rank=3))
    assert model.get_nb_trainable_parameters()[0] == 2 * 3 * (2 * 16 + 1)


@torch.no_grad()
def test_a_float32_adapter_on_a_bfloat16_model():
    model = randomise(get_steering_model(tiny_model("llama", torch.bfloat16), SteeringConfig("resid_post")).eval())
    logits = model(**BATCH).logits
    assert logits.dtype is torch.bfloat16
    assert {p.dtype for p in model.edits.parameters()} == {torch.float32}
    with model.disable_adapter():
        assert not torch.equal(model(**BATCH).logits, logits)
    out = model.generate(input_ids=prompts()[0][None], max_new_tokens=2, pad_token_id=2)
    assert out.shape == (1, 8)


@pytest.mark.parametrize("family", SETTINGS)
@torch.no_grad()
def test_the_adapter_keeps_its_data_type_when_the_model_is_cast(family, tmp_path):
    model = get_steering_model(tiny_model("llama"), SteeringConfig(**{"family": family, **SETTINGS[family]}))
    randomise(model)
    before = {name: value.clone() for name, value in model.steering_tensors().items()}
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        assert model.to(dtype)(**BATCH).logits.dtype is dtype
        assert all(torch.equal(value, before[name]) for name, value in model.steering_tensors().items())


def test_generation_settings_of_the_wrapper_are_those_of_the_model():
    model = steered("vector")
    own = GenerationConfig(max_new_tokens=3, pad_token_id=2, eos_token_id=None)
    model.generation_config = own
    assert model.get_base_model().generation_config is own
    assert model.generation_config is own
    assert model.generate(input_ids=prompts()[0][None]).shape == (1, 9)


def test_what_would_be_ignored_is_refused():
    model = steered("vector", positions="prompt")
    with pytest.raises(InputError, match="got a steering_mask, which positions 'prompt' would ignore"):
        model(**BATCH, prompt_lengths=torch.tensor([2, 1, 1]), steering_mask=BATCH["attention_mask"])
    with pytest.raises(InputError, match="got a steering_mask"):
        model.generate(input_ids=prompts()[0][None], steering_mask=torch.ones(1, 6), max_new_tokens=1)
    with pytest.raises(InputError, match=r"call push_to_hub\('owner/name'\)"):
        model.save_pretrained("never-made", push_to_hub=True)


@pytest.mark.parametrize("positions", ["prompt", "last", "last:2"])
def test_labels_that_leave_no_prompt_are_refused(positions):
    model = steered("vector", positions=positions)
    labels = BATCH["input_ids"].clone()
    with pytest.raises(InputError, match="the labels of row 0 leave none"):
        model(**BATCH, labels=labels)
    labels[:, :4] = -100  # row 0 has six tokens; of the others, padded on the left, one is not enough padding
    labels[1, :5] = -100
    assert model(**BATCH, labels=labels).loss.isfinite()
    steered("vector", positions="completion")(**BATCH, labels=BATCH["input_ids"])


def test_what_is_asked_of_the_base_model_is_answered_by_it():
    model = steered("vector")
    assert model.get_base_model() is model.base_model
    assert model.config is model.base_model.config
    assert model.get_input_embeddings() is model.base_model.get_input_embeddings()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        model.nonsense  # noqa: B018
    with pytest.raises(InputError, match=r"does not edit '1\.resid_post'; it edits 0\.resid_post, 1\.mlp_out"):
        model.edit_at("1.resid_post")


def test_the_state_is_the_adapter_also_inside_other_modules():
    model = steered("vector")
    names = {"edits.0-resid_post.v", "edits.1-mlp_out.v"}
    assert set(model.state_dict()) == names | {"adapter_config"}  # by which a checkpoint can be loaded by itself
    inside = torch.nn.ModuleDict({"module": model, "other": torch.nn.Linear(1, 1)})
    assert set(inside.state_dict()) == {f"module.{name}" for name in names} | {"other.weight", "other.bias"}
    values = {name: value + 1 if name in names else value for name, value in model.state_dict().items()}
    model.load_state_dict(values, strict=False)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match=r"the checkpoint lacks edits\.0-resid_post\.v"):
        model.load_state_dict({"edits.1-mlp_out.v": values["edits.1-mlp_out.v"]}, strict=False)


@pytest.mark.parametrize("family", SETTINGS)
def test_training_lowers_the_loss(family):
    model = get_steering_model(tiny_model("llama"), SteeringConfig(**{"family": family, **SETTINGS[family]}))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**BATCH, labels=BATCH["input_ids"].masked_fill(BATCH["attention_mask"] == 0, -100)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05


def test_measuring_gives_every_module_its_own_mode_back():
    model = tiny_model("llama").train()
    block = model.model.layers[0].eval()  # kept without dropout, as by who trains the rest alone
    steering = get_steering_model(model, SteeringConfig("1.mlp_out", scale="rms"))
    modes = [module.training for module in model.modules()]
    assert {False, True} <= set(modes)
    steering.measure_scales([BATCH])
    assert [module.training for module in model.modules()] == modes
    assert not block.training
