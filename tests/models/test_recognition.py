"""Families that are in no table: their blocks are recognised by what they compute; false descriptions are refused."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from steerscope import SteeringConfig, check_sites, get_steering_model, load_model, rank_sites, wrap_model
from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models import edited, find_sites, reading
from steerscope.models.layouts import FAMILIES as DESCRIPTIONS
from steerscope.models.recognition import recognised
from steerscope.models.recognition.skeleton import refuse_from_configuration
from steerscope.models.upper_blocks import entering_block
from steerscope.sites import SiteKind
from studies.families.tiny import families, tiny_config, tiny_model, tiny_tokenizer
from studies.families.trial import require_controls_fail, train_save_and_load, try_family
from tests.tiny import FAMILIES
from tests.tiny import tiny_model as known_model

# One or two families of every shape that no table has; all of them are behind the slow marker.
SHAPES = {
    "olmo3": "sequential, norms on writes only, gated MLP",
    "nemotron": "sequential pre-norm, plain MLP",
    "bloom": "sequential pre-norm, plain MLP",  # its attention and MLP add the stream themselves
    "mpt": "sequential pre-norm, plain MLP",
    "cohere": "parallel, one shared norm, gated MLP",
    "gptj": "parallel, one shared norm, plain MLP",
    "falcon": "parallel, one shared norm, plain MLP",  # changes in place what its MLP writes, blocks give tuples
    "granite": "sequential pre-norm, gated MLP, branches multiplied by numbers",
    "roberta-prelayernorm": "sequential, plain MLP",  # maps of the MLP in two modules, norms inside
    "mixtral": "sequential pre-norm, MLP as one map",
    "deepseek_v3": "sequential pre-norm, MLP as one map",  # dense and sparse layers, latent attention
    "jetmoe": "sequential pre-norm, MLP as one map, attention as one map",
    "lfm2": "sequential pre-norm, gated MLP",  # convolutions in place of attention
    "gemma3": "sequential, norms on reads and writes, gated MLP",  # the language model inside one of images
    "openai-gpt": "sequential post-norm, plain MLP",  # blocks give lists
    "bert": "sequential post-norm, plain MLP",  # the norms are inside of its attention and of its MLP
    "gemma4_text": "sequential, norms on reads and writes, gated MLP, an end of its own",
}
# Two blocks read the keys and values of the two below them, and none has a part of its own per layer.
SHARED_KEYS = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


@pytest.mark.parametrize("family", SHAPES)
def test_blocks_in_no_table_are_recognised_and_false_descriptions_of_them_refused(family):
    loaded = wrap_model(tiny_model(family), tiny_tokenizer())
    assert loaded.identity.layout == SHAPES[family]
    require_controls_fail(loaded)
    train_save_and_load(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_every_family_of_transformers_is_supported_or_refused(family):
    found = try_family(family)
    assert found.outcome != "broken", found.reason


@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_are_recognised_as_they_are_described(family):
    model = known_model(family)
    true = find_sites(model).description
    assert replace(recognised(model), layout=true.layout) == replace(true, layers=recognised(model).layers)
    assert true in (*DESCRIPTIONS.values(), find_sites(known_model("gpt_neox_sequential")).description)


@pytest.mark.parametrize("family", ["nemotron", "granite", "mixtral", "falcon"])
def test_recognition_in_half_precision_says_the_same(family):
    expected, found = recognised(tiny_model(family)), recognised(tiny_model(family, torch.bfloat16))
    assert found == expected


def test_recognition_through_a_lora():
    from peft import LoraConfig, get_peft_model

    model = tiny_model("granitemoe")
    plain = recognised(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False)).eval()
    assert recognised(wrapped) == plain
    check_sites(wrapped, find_sites(wrapped))


# --- multipliers ---


@torch.no_grad()
def test_an_edit_of_a_stream_moves_it_by_the_edit_whatever_the_blocks_multiplier():
    model = tiny_model("granite")
    sites = find_sites(model)
    assert sites.blocks[1].attn_scale == pytest.approx(0.22)
    ids, vector = torch.arange(4, 10)[None], torch.linspace(-1, 1, sites.d_model)
    read = ["1.attn_out", "1.resid_mid", "0.resid_post"]
    with reading(sites, read) as before:
        plain = model(ids).logits
    torch.testing.assert_close(before["1.resid_mid"], before["0.resid_post"] + before["1.attn_out"])
    for site in ("1.attn_out", "1.resid_mid"):
        with edited(model, sites, {site: lambda _: vector}), reading(sites, read) as after:
            assert not torch.equal(model(ids).logits, plain)
        torch.testing.assert_close(after["1.resid_mid"], before["1.resid_mid"] + vector)
    with edited(model, sites, dict.fromkeys(sites.sites(), torch.zeros_like)):
        assert torch.equal(model(ids).logits, plain)


@pytest.mark.parametrize("site", ["0.attn_out", "1.mlp_out", "1.resid_mid"])
@torch.no_grad()
def test_a_merged_vector_is_divided_by_the_multiplier(site):
    loaded = wrap_model(tiny_model("granite"), tiny_tokenizer())
    steering = get_steering_model(loaded, SteeringConfig(sites=site, family="vector"))
    for parameter in steering.edit_at(site).parameters():
        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    ids = torch.arange(4, 10)[None]
    expected = steering(input_ids=ids).logits
    with pytest.warns(UserWarning, match="got a bias"):
        merged = steering.merge_and_unload(make_biases=True)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected)


# --- experts ---


def test_what_a_mixture_of_experts_lacks_is_refused_by_name():
    loaded = wrap_model(tiny_model("mixtral"), tiny_tokenizer())
    sites = loaded.site_map
    with pytest.raises(InputError, match=r"no site 'mlp_hidden' \(its MLP is one map, of experts"):
        sites.resolve("0.mlp_hidden")
    assert "experts.gate_up_proj" in str(sites.left_out())
    assert "not in the sum that stands for fine-tuning: mlp.experts" in sites.describe()
    with pytest.raises(UnsupportedModelError, match=r"verify needs blocks .* a branch of it is one map"):
        sites.require_plain_blocks("verify")
    steering = get_steering_model(loaded, SteeringConfig(sites="0.mlp_out", family="vector"))
    with pytest.raises(UnsupportedModelError, match="linear maps of the MLP of block 0, which is one map"):
        steering.merge_and_unload()
    steering.unload()


def test_a_ranking_of_a_mixture_of_experts_says_what_fine_tuning_leaves_out():
    from steerscope import Example, RankOptions

    loaded = wrap_model(tiny_model("mixtral"), tiny_tokenizer())
    examples = [Example(f"{i} {3 * i % 31} =", (" yes", " no")[i % 2], (" yes", " no"), i % 2) for i in range(24)]
    ranking = rank_sites(loaded, examples, RankOptions(num_probes=1))
    assert any("without mlp.experts.down_proj" in sentence for sentence in ranking.warnings)
    assert {one.kind for one in ranking.sites} == {kind.value for kind in loaded.site_map.description.kinds}


# --- blocks with habits of their own ---


@torch.no_grad()
def test_blocks_that_change_in_place_what_they_were_given():
    model = tiny_model("falcon")
    sites = find_sites(model)
    written: list[torch.Tensor] = []
    handle = sites.blocks[1].mlp_write.register_forward_hook(lambda _, args, output: written.append(output.clone()))
    with reading(sites, ["1.mlp_out"]) as found:
        model(torch.arange(4, 10)[None])
    handle.remove()
    assert torch.equal(found["1.mlp_out"], written[0])
    with pytest.raises(UnsupportedModelError, match="mlp_out"):
        check_sites(model, find_sites(model, replace(sites.description, copied=False)))


@torch.no_grad()
def test_blocks_that_give_tuples_can_be_left_out_below_an_edit():
    model = tiny_model("falcon")
    loaded = wrap_model(model, tiny_tokenizer())
    ids = torch.arange(4, 10).repeat(3, 1)
    with reading(loaded, ["0.resid_post"]) as found:
        plain = model(ids).logits
    with entering_block(loaded.site_map, 1, found["0.resid_post"]):
        torch.testing.assert_close(model(ids).logits, plain)


# --- blocks that change the stream itself ---


@pytest.mark.parametrize("family", ["bert", "openai-gpt"])
@torch.no_grad()
def test_a_post_norm_stream_is_read_and_moved_behind_its_norms(family):
    """Against the family's own code: ``hidden_states`` of transformers, and edits written by hand into them."""
    model = tiny_model(family)
    sites, ids = find_sites(model), torch.arange(4, 10)[None]
    vector = torch.linspace(-1, 1, sites.d_model)
    with reading(
        sites, ["0.resid_pre", *(f"{layer}.{kind}" for layer in (0, 1) for kind in ("resid_mid", "resid_post"))]
    ) as read:
        streams = model(ids, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        assert torch.equal(read[f"{layer}.resid_post"], streams[layer + 1])
    with edited(model, sites, {"1.resid_post": lambda _: vector}), reading(sites, ["1.resid_post"]) as after:
        model(ids)
    torch.testing.assert_close(after["1.resid_post"], streams[2] + vector)
    block = sites.blocks[1]
    with edited(model, sites, {"1.resid_mid": lambda _: vector}), reading(sites, ["1.resid_post", "1.mlp_in"]) as after:
        model(ids)
    mid = read["1.resid_mid"] + vector
    torch.testing.assert_close(after["1.mlp_in"], mid)
    torch.testing.assert_close(after["1.resid_post"], block.end_norm(mid + block.mlp_output(block.hidden(mid))))


def test_the_member_of_a_known_family_that_is_post_norm_is_recognised():
    model = known_model("opt", do_layer_norm_before=False, word_embed_proj_dim=8)  # OPT-350m
    loaded = wrap_model(model, tiny_tokenizer())
    assert loaded.identity.layout == "sequential post-norm, plain MLP"
    require_controls_fail(loaded)
    train_save_and_load(loaded)


def test_a_vector_at_a_changed_stream_is_no_vector_of_the_branch_below():
    for family in ("bert", "gemma4_text"):
        sites = find_sites(tiny_model(family))
        assert sites.write(sites.resolve("1.resid_post")) == sites.resolve("1.resid_post")
        assert sites.written_at(sites.resolve("1.mlp_out")) == [sites.resolve("1.mlp_out")]
    sites = find_sites(tiny_model("nemotron"))
    assert sites.write(sites.resolve("1.resid_post")) == sites.resolve("1.mlp_out")
    assert sites.written_at(sites.resolve("1.mlp_out")) == [sites.resolve("1.mlp_out"), sites.resolve("1.resid_post")]


def test_weights_do_not_hold_an_edit_behind_the_norm_of_the_stream():
    loaded = wrap_model(tiny_model("openai-gpt"), tiny_tokenizer())
    steering = get_steering_model(loaded, SteeringConfig(sites="1.resid_post", family="vector"))
    for act in (steering.merge_and_unload, lambda: steering.export_lora("nowhere")):
        with pytest.raises(InputError, match="after the block changed it"):
            act()
    steering.unload()
    steering = get_steering_model(loaded, SteeringConfig(sites="1.mlp_out", family="vector"))
    with pytest.raises(InputError, match="before the block changes the stream"):
        steering.export_gguf("nowhere.gguf")
    steering.unload()
    with pytest.raises(UnsupportedModelError, match="the stream itself is changed after it is added to"):
        loaded.site_map.require_plain_blocks("verify")


@torch.no_grad()
def test_blocks_that_read_keys_of_lower_ones_are_not_left_out_below_an_edit():
    model = tiny_model("gemma4_text", **SHARED_KEYS)
    loaded = wrap_model(model, tiny_tokenizer())
    assert loaded.site_map.description.reads_below
    assert not find_sites(tiny_model("gemma4_text")).description.reads_below
    own = wrap_model(model, tiny_tokenizer(), description=recognised(model))  # which does not say so
    assert own.site_map.description.reads_below
    ids = torch.arange(4, 10).repeat(3, 1)
    with reading(loaded, ["2.resid_post"]) as found:
        plain = model(ids).logits
    with entering_block(loaded.site_map, 3, found["2.resid_post"]):
        torch.testing.assert_close(model(ids).logits, plain)


@pytest.mark.parametrize("positions", ["last", "prompt", "completion"])
def test_generation_whose_upper_layers_skip_the_prompt_is_that_without_a_cache(positions):
    loaded = wrap_model(tiny_model("gemma4_text", **SHARED_KEYS), tiny_tokenizer())
    config = SteeringConfig(sites=("1.resid_mid", "3.resid_post"), family="vector", positions=positions)
    steering = get_steering_model(loaded, config)
    with torch.no_grad():
        for parameter in steering.edits.parameters():
            parameter.copy_(torch.linspace(-2, 2, parameter.numel()).view_as(parameter))
    ids, options = (
        torch.tensor([[5, 6, 7, 8], [9, 3, 4, 11]]),
        {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False},
    )
    found = steering.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    grown = ids
    for _ in range(4):
        with torch.no_grad():
            logits = steering(input_ids=grown, prompt_lengths=torch.tensor([4, 4]), use_cache=False).logits[:, -1]
        logits[:, 1] = -torch.inf
        grown = torch.cat([grown, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, grown)
    with steering.disable_adapter():
        assert not torch.equal(found, steering.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))
    steering.unload()


# --- refusals ---


@pytest.mark.parametrize(
    ("family", "overrides", "complaint"),
    [
        ("xmod", {}, "output of the norm 'output.LayerNorm', and what that reads is no sum of the stream"),
        ("mamba", {}, r"one branch \('mixer'\)"),
        ("rwkv", {}, r"2 of its parts mix tokens \(attention, feed_forward\)"),
        ("doge", {}, "no sum of the stream that enters, a part of attention and a part of an MLP"),
        ("xlm", {}, "no residual stream was found in XLMModel"),
        ("cpmant", {}, "one position of the stream per token"),
        ("roberta-prelayernorm", {"is_decoder": False}, "no causal language model"),
    ],
)
def test_other_models_are_refused_with_what_failed(family, overrides, complaint):
    with pytest.raises(UnsupportedModelError, match=complaint):
        wrap_model(tiny_model(family, **overrides), tiny_tokenizer())


def test_a_description_with_both_or_none_of_what_writes_is_refused():
    model = tiny_model("mixtral")
    true = recognised(model)
    with pytest.raises(UnsupportedModelError, match="mlp_write=None and mlp_map=None"):
        find_sites(model, replace(true, mlp_map=None))
    with pytest.raises(UnsupportedModelError, match="no number but zero at 'no_such_number'"):
        find_sites(model, replace(true, attn_scale="no_such_number"))
    with pytest.raises(UnsupportedModelError, match=r"leaves out \['mlp.gate.weight', 'mlp.experts"):
        check_sites(model, find_sites(model, replace(true, left_out=())))


def test_a_model_of_such_a_family_is_loaded_from_a_folder(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config("granite"))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.identity.layout == SHAPES["granite"]
    assert SiteKind.MLP_HIDDEN in loaded.site_map.description.kinds


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mamba", "has one branch ('mixer')"),
        ("prophetnet", "expected one position of the stream per token"),
    ],
)
def test_a_family_is_refused_by_its_configuration_before_weights_are_read(family, reason, tmp_path):
    tiny_config(family).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(tmp_path)  # there are no weights
    assert reason in str(caught.value)


@pytest.mark.parametrize("family", SHAPES)
def test_no_family_that_is_recognised_is_refused_by_its_configuration(family):
    refuse_from_configuration(tiny_config(family))
