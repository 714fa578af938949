"""First-order shifts of the real model: against differences, dense maps, the adjoint, closed forms, remainders."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev

from steerscope.equivalence import closed_forms as cf
from steerscope.equivalence.remainder import fit_remainder, remainder_slope
from steerscope.equivalence.shifts import _tensors_at, first_order_shift, measured_shift
from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models import find_sites, forward_differentiable_attention, true_float64
from steerscope.models.load import wrap_model
from steerscope.sites import parse_site
from tests.equivalence import reference
from tests.tiny import FAMILIES, LAYOUTS, VOCAB, tiny_model, tiny_tokenizer

# Central differences with step 1e-5 of updates of 5%: truncation about 1e-9, rounding 1e-11, relative.
DIFFERENCES = 1e-7
# Both sides exact, sums of a few thousand float64 products.
EXACT = 1e-10
SLOPE = 0.05
NORM = "model.layers.0.input_layernorm.weight"
LAST_OF_A_BLOCK = ("down_proj.weight", "mlp.c_proj.weight", "dense_4h_to_h.weight", "fc2.weight")


def inputs_of(side: str = "none") -> dict[str, Tensor]:
    """Return two prompts of 5 tokens, or of 5 and 3 with padding on one side."""
    ids = torch.randint(3, VOCAB, (2, 5), generator=torch.Generator().manual_seed(5))
    if side == "none":
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    mask[1, slice(0, 2) if side == "left" else slice(3, 5)] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


def real_tokens(inputs: dict[str, Tensor], value: Tensor) -> Tensor:
    mask = inputs.get("attention_mask")
    return value.flatten(0, 1) if mask is None else value[mask.bool()]


@torch.no_grad()
def update_of(model, size: float = 0.05, only: str = "") -> dict[str, Tensor]:
    """Return a random change of every parameter whose name holds ``only``: ``size`` times the parameter's norm."""
    generator, update = torch.Generator().manual_seed(1), {}
    for name, parameter in model.named_parameters():
        if only in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            update[name] = (noise * size * parameter.norm() / noise.norm()).to(parameter.dtype)
    assert update
    return update


def value_at(model, inputs: dict[str, Tensor], name: str) -> Tensor:
    """Return the tensor at a site or the logits, by the reference."""
    if name == "logits":
        return model(**inputs, use_cache=False).logits
    arguments = (inputs["input_ids"], inputs.get("attention_mask"), inputs.get("position_ids"))
    return reference.site_value(model, *arguments, parse_site(name))


@cache
def double(family: str):
    return tiny_model(family, torch.float64)


def names_of(model) -> tuple[str, ...]:
    return (*map(str, find_sites(model).sites()), "logits")


def gap(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    assert found.shape == expected.shape
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


# --- the prediction is the derivative ---


# Every layout with all sorts of padding, the other families with the one that goes wrong most easily.
PADDED = [(family, side) for family in LAYOUTS for side in ("none", "left", "right")]
PADDED += [(family, "left") for family in FAMILIES if family not in LAYOUTS]


@pytest.mark.parametrize(("family", "side"), PADDED)
def test_equals_central_differences_everywhere(family, side):
    """All weights move at once; every site and the logits are compared at every real token."""
    model, inputs = double(family), inputs_of(side)
    update, names = update_of(model), names_of(model)
    with true_float64(model), torch.no_grad():
        predicted = first_order_shift(model, update, inputs, names)
        measured = reference.central_difference_shift(
            model, lambda: {name: value_at(model, inputs, name) for name in names}, update, 1e-5
        )
        for name in names:
            found, expected = (real_tokens(inputs, shift[name]) for shift in (predicted, measured))
            assert expected.norm() > 1e-2 * value_at(model, inputs, name).norm(), f"{name}: nothing moves"
            assert gap(found, expected) < DIFFERENCES, f"{name}: {gap(found, expected):.1e}"


def test_control_a_neighbouring_site_or_weight_is_told_apart():
    model, inputs = double("llama"), inputs_of()
    update, names = update_of(model), ("0.attn_out", "0.resid_mid", "0.mlp_in", "0.mlp_out", "0.resid_post")
    less = {name: change for name, change in update.items() if name != "model.layers.0.self_attn.k_proj.weight"}
    with true_float64(model):
        shift, without = first_order_shift(model, update, inputs, names), first_order_shift(model, less, inputs, names)
    for name in names:
        assert gap(without[name], shift[name]) > 1e-3
        assert all(gap(shift[other], shift[name]) > 1e-2 for other in names if other != name)


@pytest.mark.parametrize("family", LAYOUTS)
def test_sites_below_the_weight_do_not_move(family):
    """Not a rounding error away from zero but zero, and only there."""
    model, inputs = double(family), inputs_of()
    (last,) = {n for n, _ in model.named_parameters() if ".1." in n and n.endswith(LAST_OF_A_BLOCK)}
    names = names_of(model)
    shift = first_order_shift(model, update_of(model, only=last), inputs, names)
    moved = {name for name in names if torch.count_nonzero(shift[name]) > 0}
    assert moved == {"1.mlp_out", "1.resid_post", "logits"}


def shift_jacobian(model, weight_name: str, inputs: dict[str, Tensor], at: str) -> Tensor:
    """Return the dense map from one weight to one site ``batch token channel *weight``, forward or backward."""
    weights = {weight_name: model.get_parameter(weight_name).detach()}
    run = _tensors_at(model, find_sites(model), inputs, (at,))
    with forward_differentiable_attention(model):
        transform = jacfwd if weights[weight_name].numel() < run(weights)[0].numel() else jacrev
        return transform(lambda w: run({weight_name: w})[0])(weights[weight_name]).detach()


@pytest.mark.parametrize("family", LAYOUTS)
def test_equals_the_dense_map_times_the_update(family):
    """Few numbers in the weight (a norm: forward mode) and many (a matrix: backward mode)."""
    model, inputs = double(family), inputs_of("right")
    chosen = [n for n, p in model.named_parameters() if ".0." in n and p.dim() == 1][:1]
    chosen += [n for n, _ in model.named_parameters() if ".0." in n and n.endswith(LAST_OF_A_BLOCK)]
    assert len(chosen) == 2
    with true_float64(model):
        for name in chosen:
            update = update_of(model, only=name)
            for at in ("0.resid_post", "1.attn_heads", "logits"):
                dense = shift_jacobian(model, name, inputs, at)
                found = first_order_shift(model, update, inputs, (at,))[at]
                assert dense.shape == (*found.shape, *update[name].shape)
                product = dense.flatten(3) @ update[name].flatten()
                assert found.norm() > 1e-4 * value_at(model, inputs, at).detach().norm()
                assert gap(found, product) < EXACT, f"{name} to {at}"


@pytest.mark.parametrize("family", FAMILIES)
def test_adjoint_identity(family):
    """``<u, J v> == <J^T u, v>`` with J v by forward mode and J^T u by plain backward, at every site."""
    model, inputs = double(family), inputs_of("left")
    update, names = update_of(model), names_of(model)
    mask = inputs["attention_mask"][..., None]
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(3)
    with true_float64(model):
        predicted = first_order_shift(model, update, inputs, names)
        for name in names:
            value = value_at(model, inputs, name)
            u = torch.randn(value.shape, generator=generator, dtype=torch.float64) * mask
            gradients = torch.autograd.grad((u * value).sum(), list(parameters.values()), allow_unused=True)
            there = [(g, update[n]) for g, n in zip(gradients, parameters, strict=True) if g is not None]
            backward = float(sum((g * change).sum() for g, change in there))
            forward = float((u * predicted[name]).sum())
            assert abs(forward) > 1e-4 * float(u.norm() * predicted[name].norm()), "nearly orthogonal: no test"
            size = float(sum((g * change).abs().sum() for g, change in there))
            assert abs(forward - backward) < EXACT * size, f"{name}: {forward} and {backward}"


def test_equals_the_closed_form_of_a_gated_mlp():
    """P1 at ``mlp_out`` of a Llama block: the MLP's own weights move, so what it receives stays."""
    model, inputs = double("llama"), inputs_of()
    mlp = model.model.layers[1].mlp
    update = update_of(model, only="layers.1.mlp")
    assert len(update) == 3
    weights = cf.GatedWeights(*(getattr(mlp, n).weight.detach() for n in ("gate_proj", "up_proj", "down_proj")))
    change = cf.GatedWeights(*(update[f"model.layers.1.mlp.{n}.weight"] for n in ("gate_proj", "up_proj", "down_proj")))
    with true_float64(model):
        shift = first_order_shift(model, update, inputs, ("1.mlp_in", "1.mlp_out"))
        z = value_at(model, inputs, "1.mlp_in").detach()
    assert torch.count_nonzero(shift["1.mlp_in"]) == 0
    expected = cf.gated_weight_shift(z, weights, change, mlp.act_fn)
    assert gap(shift["1.mlp_out"], expected) < EXACT
    # control: without the gate's share
    assert (
        gap(shift["1.mlp_out"], cf.gated_weight_shift(z, weights, change._replace(gate=0 * change.gate), mlp.act_fn))
        > 0.01
    )


def test_equals_the_closed_form_of_a_plain_mlp():
    """The same for GPT-2, whose weights are stored input-first."""
    model, inputs = double("gpt2"), inputs_of()
    mlp, prefix = model.transformer.h[1].mlp, "transformer.h.1.mlp"
    update = update_of(model, only=prefix)
    assert len(update) == 4

    def plain(tensors: list[Tensor]) -> cf.PlainWeights:
        first, first_bias, second, second_bias = tensors
        return cf.PlainWeights(first.T, first_bias, second.T, second_bias)

    names = ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias")
    weights = plain([mlp.get_parameter(n).detach() for n in names])
    change = plain([update[f"{prefix}.{n}"] for n in names])
    with true_float64(model):
        found = first_order_shift(model, update, inputs, ("1.mlp_out",))["1.mlp_out"]
        z = value_at(model, inputs, "1.mlp_in").detach()
    assert gap(found, cf.plain_weight_shift(z, weights, change, mlp.act)) < EXACT


def test_linear_in_the_update():
    model, inputs = double("gemma2"), inputs_of()
    first, second = update_of(model, only="layers.0"), update_of(model, size=0.3, only="layers.1")
    with true_float64(model):
        one, other, both = (
            first_order_shift(model, change, inputs)["logits"]
            for change in (first, second, {n: 3 * c for n, c in first.items()} | {n: -c for n, c in second.items()})
        )
    assert gap(both, 3 * one - other) < EXACT


def test_measured_shift_is_the_move_of_the_real_model():
    model, inputs = double("llama"), inputs_of()
    update = update_of(model, only="layers.0")
    at = ("0.resid_post", "logits")
    with true_float64(model), torch.no_grad():
        found = measured_shift(model, update, inputs, at, scale=0.5)
        before = {name: value_at(model, inputs, name) for name in at}
        moved = tiny_model("llama", torch.float64)
        for name, change in update.items():
            moved.get_parameter(name).add_(0.5 * change)
        for name in at:
            assert gap(found[name], value_at(moved, inputs, name) - before[name]) < EXACT


# --- the remainder ---


# ReLU has kinks: between two of them the remainder is of second order, so OPT starts from smaller updates.
SCALES = {"opt": (1e-3, 1e-4, 1e-5)}


@pytest.mark.parametrize("family", FAMILIES)
def test_remainder_is_of_second_order(family):
    model = double(family)
    scales = SCALES.get(family, (1e-1, 1e-2, 1e-3, 1e-4))
    with true_float64(model):
        for at in ("0.mlp_hidden", "logits") if family in LAYOUTS else ("logits",):
            found = remainder_slope(model, update_of(model), inputs_of("right"), at, scales)
            assert found.slope == pytest.approx(2, abs=SLOPE), at
            assert found.scales == scales
            assert found.relative[0] > 1e-6, "linear to rounding: the slope would be noise"


@pytest.mark.parametrize("family", LAYOUTS)
def test_remainder_is_of_second_order_with_left_padding(family):
    model = double(family)
    with true_float64(model):
        found = remainder_slope(model, update_of(model), inputs_of("left"))
    assert found.slope == pytest.approx(2, abs=SLOPE)


@pytest.mark.parametrize("family", LAYOUTS)
def test_real_tokens_have_a_second_order_remainder_with_left_padding(family):
    model, inputs = double(family), inputs_of("left")
    update = update_of(model)

    def measured(scale: float) -> Tensor:
        return real_tokens(inputs, measured_shift(model, update, inputs, scale=scale)["logits"])

    with true_float64(model):
        linear = real_tokens(inputs, first_order_shift(model, update, inputs)["logits"])
        assert fit_remainder(measured, linear, (1e-1, 1e-2, 1e-3, 1e-4)).slope == pytest.approx(2, abs=SLOPE)


@pytest.mark.parametrize("family", LAYOUTS)
def test_control_a_wrong_linear_term_leaves_first_order(family):
    """The prediction with one weight forgotten, or of another site that is nearly right, has slope 1."""
    model, inputs = double(family), inputs_of()
    update = update_of(model)
    forgotten = next(n for n, p in model.named_parameters() if ".0." in n and p.dim() == 2)
    with true_float64(model):
        less = {n: c for n, c in update.items() if n != forgotten}
        wrong = first_order_shift(model, less, inputs)["logits"]
        found = fit_remainder(
            lambda t: measured_shift(model, update, inputs, scale=t)["logits"], wrong, (1e-2, 1e-3, 1e-4)
        )
    assert found.slope == pytest.approx(1, abs=SLOPE)


def test_known_limit_hidden_float32_ends_the_second_order():
    """Outside ``true_float64`` the remainder of a float64 Llama is rounding of its float32 norms."""
    found = remainder_slope(double("llama"), update_of(double("llama")), inputs_of(), scales=(1e-4, 1e-5, 1e-6))
    assert found.slope < 1.5


def test_fit_remainder_on_known_functions():
    linear = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = fit_remainder(lambda t: t * linear + t**2 * torch.tensor([0.0, 2.0]), linear, (0.1, 0.01))
    assert found.slope == pytest.approx(2)
    assert found.relative == pytest.approx((0.1 * 2 / 5, 0.01 * 2 / 5))
    assert fit_remainder(lambda t: t * linear + t**3 * linear, linear, (0.1, 0.01, 0.001)).slope == pytest.approx(3)


def test_remainder_refuses_what_has_no_slope():
    model, inputs = double("llama"), inputs_of()
    above = update_of(model, only="layers.1")
    with pytest.raises(InputError, match="predicted shift is zero"):
        remainder_slope(model, above, inputs, at="0.resid_post")
    zero = {name: torch.zeros_like(change) for name, change in above.items()}
    with pytest.raises(InputError, match="predicted shift is zero"):
        remainder_slope(model, zero, inputs)
    for scales in ((0.1,), (0.1, 0.0), (0.1, -0.01), ()):
        with pytest.raises(InputError, match="at least two positive factors"):
            remainder_slope(model, above, inputs, scales=scales)


# --- attention ---


def attention_seen(model, into: list[str]):
    """Note the attention backend whenever the first block runs."""

    def hook(module: Any, args: Any) -> None:
        into.append(model.config._attn_implementation)

    return model.model.layers[0].register_forward_pre_hook(hook)


def test_attention_is_eager_during_the_call_only():
    model, seen = tiny_model("llama"), []
    handle = attention_seen(model, seen)
    update = update_of(model, only="layers.0")
    for call in (
        lambda: first_order_shift(model, update, inputs_of()),
        lambda: measured_shift(model, update, inputs_of()),
    ):
        assert model.config._attn_implementation == "sdpa"
        seen.clear()
        call()
        assert model.config._attn_implementation == "sdpa"
        assert seen[-1] == "eager"
    handle.remove()


def test_attention_comes_back_after_an_error():
    model = tiny_model("llama")

    def fails(module: Any, args: Any) -> None:
        assert model.config._attn_implementation == "eager"
        raise ZeroDivisionError

    handle = model.model.layers[1].register_forward_pre_hook(fails)
    for call in (first_order_shift, measured_shift):
        with pytest.raises(ZeroDivisionError):
            call(model, update_of(model, only="layers.0"), inputs_of())
        assert model.config._attn_implementation == "sdpa"
    handle.remove()
    assert not model.model.layers[1]._forward_pre_hooks
    assert not model.model.layers[1]._forward_hooks


def test_a_model_already_eager_stays_so():
    model = tiny_model("llama", torch.float64)
    expected = first_order_shift(model, update_of(model), inputs_of())["logits"]
    model.set_attn_implementation("eager")
    found = first_order_shift(model, update_of(model), inputs_of())["logits"]
    assert model.config._attn_implementation == "eager"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("reason", ["no method", "refuses"])
def test_a_backend_that_cannot_be_switched_is_refused(reason, monkeypatch):
    model = tiny_model("llama")

    def refuses(name: str) -> None:
        raise ValueError("this model has its own kernel")

    monkeypatch.setattr(model, "set_attn_implementation", None if reason == "no method" else refuses)
    said = "no set_attn_implementation" if reason == "no method" else "its own kernel"
    with pytest.raises(UnsupportedModelError, match=rf"'sdpa' has no forward derivative.*{said}.*Load the model with"):
        first_order_shift(model, update_of(model), inputs_of())
    assert model.config._attn_implementation == "sdpa"


def test_known_limit_forward_derivatives_through_fused_attention_raise():
    """The reason for switching. Torch 2.6 does not use the fused kernel here, and is right; later ones raise."""
    model, inputs = tiny_model("llama"), inputs_of()
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = model.get_parameter(name).detach()

    def run(value: Tensor) -> Tensor:
        return torch.func.functional_call(model, {name: value}, kwargs={**inputs, "use_cache": False}).logits

    assert model.config._attn_implementation == "sdpa"
    with forward_differentiable_attention(model):
        eager = torch.func.jvp(run, (weight,), (torch.ones_like(weight),))[1]
    assert eager.abs().max() > 0
    fused = None
    with suppress(NotImplementedError, RuntimeError):
        fused = torch.func.jvp(run, (weight,), (torch.ones_like(weight),))[1]
    if fused is None:
        with pytest.raises((NotImplementedError, RuntimeError), match="forward AD"):
            torch.func.jvp(run, (weight,), (torch.ones_like(weight),))
    else:
        torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)


# --- the door ---


@pytest.mark.parametrize("call", [first_order_shift, measured_shift, remainder_slope])
def test_refusals(call):
    model, inputs = double("llama"), inputs_of()
    good = torch.zeros(16, dtype=torch.float64)
    with pytest.raises(InputError, match=r"'model\.layers\.0\.input_layernrom\.weight'.*Did you mean '.*layernorm"):
        call(model, {NORM.replace("norm", "nrom"): good}, inputs)
    with pytest.raises(InputError, match=r"shape \(16, 1\); expected \(16,\)"):
        call(model, {NORM: good[:, None]}, inputs)
    with pytest.raises(InputError, match="empty"):
        call(model, {}, inputs)
    at = "0.mlp_outt" if call is remainder_slope else ("0.mlp_outt",)
    with pytest.raises(InputError, match=r"'mlp_outt'.*Did you mean.*'mlp_out'"):
        call(model, {NORM: good}, inputs, at)
    at = "2.mlp_out" if call is remainder_slope else ("logits", "2.mlp_out")
    with pytest.raises(InputError, match="layers 0 to 1"):
        call(model, {NORM: good}, inputs, at)


@pytest.mark.parametrize("call", [first_order_shift, measured_shift, remainder_slope])
def test_training_mode_is_refused(call):
    model = tiny_model("llama").train()
    with pytest.raises(InputError, match=r"training mode.*model\.eval\(\)"):
        call(model, {NORM: torch.zeros(16)}, inputs_of())


def test_a_tied_weight_under_its_second_name_is_refused():
    model = tiny_model("llama", tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"'lm_head\.weight'.*a tied weight goes by the name of its first use"):
        first_order_shift(model, {"lm_head.weight": torch.zeros(VOCAB, 16)}, inputs_of())


def test_nothing_in_the_model_changes():
    """Weights bit for bit, their gradients, requires_grad, hooks and mode."""
    model, inputs = tiny_model("gpt2"), inputs_of("left")
    model.get_parameter("transformer.h.0.ln_1.weight").requires_grad_(False)
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    update = update_of(model)
    kept = {n: c.clone() for n, c in update.items()}
    first_order_shift(model, update, inputs, names_of(model))
    measured_shift(model, update, inputs, names_of(model), scale=3.0)
    remainder_slope(model, update, inputs)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad is before[name][1]
        assert parameter.grad is None
        assert torch.equal(update[name], kept[name])
    assert not model.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_results_carry_no_graph_and_keep_the_names_asked_for():
    model = tiny_model("llama")
    at = ("logits", "blocks.1.hook_resid_post", "0.resid_mid")
    shift = first_order_shift(model, update_of(model), inputs_of(), at)
    assert tuple(shift) == at
    assert all(not value.requires_grad for value in shift.values())
    assert shift["blocks.1.hook_resid_post"].shape == (2, 5, 16)
    measured = measured_shift(model, update_of(model), inputs_of(), at, scale=1e-3)
    assert all(gap(measured[name], 1e-3 * shift[name]) < 0.05 for name in at)


def test_a_tied_embedding_counts_with_both_uses():
    model, inputs = tiny_model("llama", torch.float64, tie_word_embeddings=True), inputs_of()
    update = update_of(model, only="embed_tokens")
    with true_float64(model), torch.no_grad():
        found = first_order_shift(model, update, inputs)["logits"]
        measured = reference.central_difference_shift(model, lambda: value_at(model, inputs, "logits"), update, 1e-5)
    assert gap(found, measured) < DIFFERENCES


def test_accepts_a_loaded_model():
    model, inputs = tiny_model("llama", torch.float64), inputs_of()
    loaded = wrap_model(model, tiny_tokenizer())
    update = update_of(model)
    for call in (first_order_shift, measured_shift):
        assert torch.equal(call(loaded, update, inputs)["logits"], call(model, update, inputs)["logits"])
    with true_float64(model):
        assert remainder_slope(loaded, update, inputs).slope == pytest.approx(2, abs=SLOPE)


def test_accepts_a_peft_model():
    """An update of LoRA's B moves the model like the product of the factors on the plain weight (P1, P13)."""
    plain, inputs = double("llama"), inputs_of("right")
    weight = "model.layers.0.self_attn.v_proj.weight"
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["v_proj"], layers_to_transform=[0], lora_dropout=0.0)
    model = peft.get_peft_model(tiny_model("llama", torch.float64), config).eval()
    generator = torch.Generator().manual_seed(2)
    names = {n.split(".")[-3]: n for n, _ in model.named_parameters() if "lora_" in n}
    down = torch.randn(model.get_parameter(names["lora_A"]).shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model.get_parameter(names["lora_A"]).copy_(down)
    model.double()
    up = torch.randn(model.get_parameter(names["lora_B"]).shape, generator=generator, dtype=torch.float64)
    at = ("0.attn_heads", "0.resid_post", "logits")
    with true_float64(model):
        found = first_order_shift(model, {names["lora_B"]: up}, inputs, at)
        expected = first_order_shift(plain, {weight: 3.0 * up @ down}, inputs, at)
        base = first_order_shift(model, {_base(model, weight): 3.0 * up @ down}, inputs, at)
        slope = remainder_slope(model, {names["lora_B"]: 0.1 * up}, inputs).slope
    assert names.keys() == {"lora_A", "lora_B"}
    for name in at:
        assert gap(found[name], expected[name]) < EXACT
        assert gap(base[name], expected[name]) < EXACT
    assert slope == pytest.approx(2, abs=SLOPE)
    assert model.get_base_model().config._attn_implementation == "sdpa"


def _base(model, weight: str) -> str:
    (found,) = (n for n, _ in model.named_parameters() if n.endswith(weight.replace(".weight", ".base_layer.weight")))
    return found
