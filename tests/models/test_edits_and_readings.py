"""``edited`` and ``reading``: whose model, in which data type, under which keys."""

from __future__ import annotations

import copy
from collections import OrderedDict

import peft
import pytest
import torch
from torch import nn

from steerscope import SteeringConfig, first_order_shift, get_steering_model
from steerscope.errors import InputError
from steerscope.models import edited, find_sites, reading, wrap_model
from steerscope.sites import Site, SiteKind
from tests.tiny import LAYOUTS, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("own", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@torch.no_grad()
def test_edits_are_added_in_the_models_data_type(own, given, family):
    model = tiny_model(family, own)
    site_map = find_sites(model)
    vector = torch.linspace(-1, 1, 16, dtype=given)
    for kind in site_map.description.kinds:
        width = site_map.width(Site(1, kind))
        edit = {Site(1, kind): lambda x, width=width: vector[torch.arange(width) % 16].expand(x.shape)}
        same = {Site(1, kind): lambda x, width=width: vector.to(own)[torch.arange(width) % 16].expand(x.shape)}
        with edited(model, site_map, edit):
            found = model(IDS).logits
        with edited(model, site_map, same):
            expected = model(IDS).logits
        assert found.dtype is own
        assert torch.equal(found, expected)
        assert not torch.equal(found, model(IDS).logits)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (1, 1, 16), (2, 1, 16), (1, 4, 16), (2, 4, 16)])
@torch.no_grad()
def test_what_is_repeated_over_batch_and_tokens(shape):
    model = tiny_model("llama")
    added = torch.randn(shape)
    with edited(model, find_sites(model), {"0.mlp_out": lambda _: added}):
        found = model(IDS).logits
    with edited(model, find_sites(model), {"0.mlp_out": lambda _: added.expand(2, 4, 16)}):
        assert torch.equal(model(IDS).logits, found)


@pytest.mark.parametrize(
    ("added", "what"),
    [
        (0.5, "float"),
        (None, "NoneType"),
        (torch.tensor(0.5), r"shape \(\)"),
        (torch.ones(1), r"shape \(1,\)"),
        (torch.ones(4, 1), r"shape \(4, 1\)"),
        (torch.ones(4, 16), r"shape \(4, 16\)"),
        (torch.ones(2, 16), r"shape \(2, 16\)"),
        (torch.ones(2, 4, 1), r"shape \(2, 4, 1\)"),
        (torch.ones(1, 2, 4, 16), r"shape \(1, 2, 4, 16\)"),
        (torch.ones(2, 4, 8), r"shape \(2, 4, 8\)"),
        (torch.ones(3, 4, 16), r"shape \(3, 4, 16\)"),
        (torch.ones(16, dtype=torch.complex64), "a tensor of torch.complex64"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_added_is_refused(added, what):
    model = tiny_model("llama")
    message = rf"the edit at '0\.resid_post' returned {what}; expected .* = \(2, 4, 16\), of 16 channels"
    with edited(model, find_sites(model), {"0.resid_post": lambda _: added}), pytest.raises(InputError, match=message):
        model(IDS)


@torch.no_grad()
def test_an_edit_that_changes_what_it_is_given_is_refused():
    model = tiny_model("llama")
    edits = {"0.resid_post": lambda x: x.mul_(0.1)}
    message = r"the edit at '0\.resid_post' changed the tensor it was given"
    with edited(model, find_sites(model), edits), pytest.raises(InputError, match=message):
        model(IDS)


@torch.no_grad()
def test_the_model_is_the_one_the_site_map_belongs_to():
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    site_map, edits = find_sites(model), {"0.mlp_out": lambda x: 0.1 * x}
    for wrong in (nn.Linear(1, 1), other, None):
        with pytest.raises(InputError, match="the site map was found in another model"):
            edited(wrong, site_map, edits).__enter__()
    for wrong in ((model, site_map), (3, edits), (model, other, edits)):
        with pytest.raises(
            InputError,
            match=r"expected (\(model, \{site: function\}\), or \(model, site_map|a loaded or steered model)",
        ):
            edited(*wrong).__enter__()
    for enter in (lambda: reading(3, ["0.mlp_out"]), lambda: first_order_shift(3, edits, {})):
        with pytest.raises(InputError, match="expected a loaded or steered model, or one of transformers; got int"):
            enter().__enter__()
    with edited(nn.Sequential(model), site_map, edits):  # inside any wrapper
        expected = model(IDS).logits
    loaded = wrap_model(model, tiny_tokenizer())
    with edited(loaded, edits) as inner, reading(loaded, ["0.mlp_out"]) as seen:
        assert torch.equal(inner(IDS).logits, expected)
        assert seen["0.mlp_out"].shape == (2, 4, 16)
    steered = get_steering_model(model, SteeringConfig("0.mlp_out"))
    with edited(steered, edits=edits) as inner:
        assert torch.equal(inner(IDS).logits, expected)


def test_parts_that_were_replaced_since_are_not_passed_by():
    """A LoRA put on later wraps the maps that the site map knows."""
    model = tiny_model("llama")
    site_map = find_sites(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["down_proj"]))
    for enter in (
        lambda: edited(wrapped, site_map, {"1.mlp_out": lambda x: x}),
        lambda: reading(site_map, ["1.mlp_out"]),
    ):
        with pytest.raises(InputError, match=r"'mlp_write' of block 1 was replaced.*find_sites\(model\) again"):
            enter().__enter__()
    with reading(find_sites(wrapped), ["1.mlp_out"]) as seen:
        wrapped(IDS)
    assert seen["1.mlp_out"].shape == (2, 4, 16)


@pytest.mark.parametrize("sort", ["plain", "loaded", "steered", "peft"])
def test_all_take_the_same_models_and_answer_by_the_same_names(sort):
    model = tiny_model("llama")
    if sort == "loaded":
        model = wrap_model(model, tiny_tokenizer())
    if sort == "steered":
        model = get_steering_model(model, SteeringConfig("1.mlp_out")).eval()
    if sort == "peft":
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).eval()
    weights = (model.model if sort == "loaded" else model).named_parameters()
    update = {name: torch.ones_like(weight) for name, weight in weights if "layers.0.mlp.down_proj" in name}
    names = ["1.resid_pre", Site(1, SiteKind.MLP_OUT)]
    with edited(model, {"0.mlp_out": lambda x: 0.1 * x}) as inner, reading(model, names) as seen:
        inner(IDS)
    shift = first_order_shift(model, update, {"input_ids": IDS}, [*names, "logits"])
    assert list(seen) == names
    assert list(shift) == [*names, "logits"]
    for found in (seen, shift):
        for same in ("1.resid_pre", "0.resid_post", Site(0, SiteKind.RESID_POST), "blocks.0.hook_resid_post"):
            assert found[same] is found["1.resid_pre"]
        assert found["1.mlp_out"] is found[names[1]]
        assert found["1.mlp_out"].shape == (2, 4, 16)
        with pytest.raises(KeyError, match=r"asked for were 0\.resid_post, 1\.mlp_out"):
            found["1.resid_post"]
    assert shift["logits"].shape[:2] == (2, 4)
    assert float(shift["0.resid_post"].abs().max()) > 0


@torch.no_grad()
def test_readings_answer_under_every_name_of_a_site():
    model = tiny_model("llama")
    site_map = find_sites(model)
    post = Site(0, SiteKind.RESID_POST)
    with reading(site_map, ["0.resid_post", "1.attn_heads.2", Site(1, SiteKind.MLP_OUT)]) as seen:
        with pytest.raises(KeyError, match="the model has not run inside the context yet"):
            seen["0.resid_post"]
        assert "0.resid_post" not in seen
        assert seen.get("0.resid_post") is None
        model(IDS)
    assert list(seen) == ["0.resid_post", "1.attn_heads.2", Site(1, SiteKind.MLP_OUT)]
    names = ["0.resid_post", post, "1.resid_pre", "blocks.0.hook_resid_post", "0.block_output"]
    for name in names:
        assert seen[name] is seen["0.resid_post"]
        assert name in seen
        assert seen.get(name) is seen["0.resid_post"]
    assert seen["1.mlp_out"].shape == seen["1.post-mlp"].shape == (2, 4, 16)
    for wrong in ("1.resid_post", "nonsense", 3):
        assert wrong not in seen
        assert seen.get(wrong) is None
        with pytest.raises(KeyError, match=r"asked for were 0\.resid_post, 1\.attn_heads\.2, 1\.mlp_out"):
            seen[wrong]
    with reading(site_map, ["1.resid_pre", "0.resid_post"]) as seen:
        model(IDS)
    assert set(seen) == {"1.resid_pre", "0.resid_post"}
    assert seen["1.resid_pre"] is seen[post]


@pytest.mark.parametrize("family", LAYOUTS)
@torch.no_grad()
def test_reading_and_editing_a_model_whose_weights_are_offloaded(family, tmp_path):
    import accelerate

    expected, offloaded = [], []
    for found in (expected, offloaded):
        model = tiny_model(family)
        if found is offloaded:
            accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
            assert all(p.is_meta for p in model.parameters())
        site_map = find_sites(model)
        with edited(model, site_map, {"0.mlp_out": lambda x: 0.1 * x}), reading(site_map, ["1.resid_post"]) as seen:
            found += [model(IDS).logits, seen["1.resid_post"]]
    assert all(torch.equal(a, b) for a, b in zip(expected, offloaded, strict=True))


def test_what_is_no_edit_is_refused_on_entering():
    model = tiny_model("llama")
    site_map = find_sites(model)
    for edit in (torch.ones(16), nn.Parameter(torch.ones(16)), None, 3, "x", [1.0]):
        with pytest.raises(InputError, match=r"the edit at '1.mlp_out' is \w+; expected a function.*lambda x: vector"):
            edited(model, site_map, {"1.mlp_out": edit}).__enter__()
    for edits in ([("1.mlp_out", torch.ones_like)], torch.ones_like):
        with pytest.raises(InputError, match=r"expected \(model, \{site: function\}\), or \(model, site_map"):
            edited(model, site_map, edits).__enter__()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_one_site_may_be_given_alone():
    model = tiny_model("llama")
    site_map = find_sites(model)
    with reading(site_map, ["1.resid_post"]) as several:
        model(IDS)
    for site in ("1.resid_post", Site(1, SiteKind.RESID_POST)):
        with reading(site_map, site) as found:
            model(IDS)
        assert torch.equal(found[site], several["1.resid_post"])
    for sites in (None, 5):
        with pytest.raises(InputError, match=r"expected a site .* or several of them"):
            reading(site_map, sites).__enter__()
    assert site_map.resolve_kinds("mlp_out") == site_map.resolve_kinds(["mlp_out"]) == (SiteKind.MLP_OUT,)


def test_readings_and_shifts_are_copied_and_saved_without_their_model(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad(), reading(model, ["1.resid_post"]) as found:
        model(IDS)
    copied = copy.deepcopy(found)
    torch.save(found, tmp_path / "found.pt")
    saved = torch.load(tmp_path / "found.pt", weights_only=True)
    for one in (copied, saved):
        assert type(one) is OrderedDict
        assert list(one) == ["1.resid_post"]
        assert torch.equal(one["1.resid_post"], found["1.resid_post"])
    assert (tmp_path / "found.pt").stat().st_size < 4096
