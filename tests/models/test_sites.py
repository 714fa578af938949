"""Site names: own names, aliases, refusals; and what a model's site map makes of them."""

import pytest

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models import find_sites
from steerscope.models.blocks import linear_shape
from steerscope.models.layouts import FAMILIES as DESCRIPTIONS
from steerscope.models.layouts import known_description
from steerscope.sites import ALIASES, REFUSED, Site, SiteKind, parse_kind, parse_site
from tests.tiny import FAMILIES, tiny_config, tiny_model

PARALLEL = ("gpt_neox", "phi")


@pytest.fixture(scope="module")
def maps():
    """The site map of one tiny model per family."""
    return {family: find_sites(tiny_model(family)) for family in FAMILIES}


@pytest.mark.parametrize("kind", SiteKind)
def test_own_names_read_back(kind):
    assert parse_kind(kind.value) is kind
    assert parse_kind(f"  {kind.value.upper()} ") is kind
    site = Site(0, kind)
    assert parse_site(str(site)) == site


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("12.resid_post", Site(12, SiteKind.RESID_POST)),
        ("3.attn_heads.5", Site(3, SiteKind.ATTN_HEADS, head=5)),
        ("blocks.12.hook_resid_post", Site(12, SiteKind.RESID_POST)),
        ("blocks.0.hook_resid_pre", Site(0, SiteKind.RESID_PRE)),
        ("blocks.3.attn.hook_z", Site(3, SiteKind.ATTN_HEADS)),
        ("blocks.3.hook_resid_mid", Site(3, SiteKind.RESID_MID)),
        ("blocks.3.hook_attn_out", Site(3, SiteKind.ATTN_OUT)),
        ("blocks.3.hook_mlp_out", Site(3, SiteKind.MLP_OUT)),
        ("blocks.3.mlp.hook_post", Site(3, SiteKind.MLP_HIDDEN)),
        ("2.block_output", Site(2, SiteKind.RESID_POST)),
        ("2.attention_value_output", Site(2, SiteKind.ATTN_HEADS)),
        ("2.mlp_output", Site(2, SiteKind.MLP_OUT)),
        ("2.post-MLP", Site(2, SiteKind.MLP_OUT)),
        ("2.post_block", Site(2, SiteKind.RESID_POST)),
        (" 0.mlp_in ", Site(0, SiteKind.MLP_IN)),
    ],
)
def test_names_and_aliases(text, site):
    assert parse_site(text) == site


def test_every_alias_is_read():
    for alias, kind in ALIASES.items():
        assert parse_kind(alias) is kind
        assert parse_site(f"0.{alias}") == Site(0, kind)


@pytest.mark.parametrize("text", ["3.resid_pre", "3.block_input", "blocks.3.hook_resid_pre"])
def test_resid_pre_above_the_first_layer_is_resid_post_of_the_layer_below(text):
    assert parse_site(text) == Site(2, SiteKind.RESID_POST)


@pytest.mark.parametrize("name", ["pre-MLP", "pre_mlp", "PRE-MLP"])
def test_pre_mlp_is_refused_and_names_the_two(name):
    with pytest.raises(InputError, match=r"ambiguous.*'attn_out'.*'mlp_in'"):
        parse_kind(name)
    with pytest.raises(InputError, match="ambiguous"):
        parse_site(f"4.{name}")


def test_pyvene_mlp_activation_is_refused():
    with pytest.raises(InputError, match=r"activation of the gate alone.*'mlp_hidden'"):
        parse_kind("mlp_activation")


@pytest.mark.parametrize("name", REFUSED)
def test_every_refusal_names_a_way_out(name):
    with pytest.raises(InputError) as raised:
        parse_kind(name)
    assert any(kind.value in str(raised.value) for kind in SiteKind)
    assert name not in ALIASES


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("resid_pst", "resid_post"), ("mlp_hiden", "mlp_hidden"), ("hook_resid_pots", "hook_resid_post")],
)
def test_typos_get_a_suggestion(typo, meant):
    with pytest.raises(InputError, match=rf"unknown site kind '{typo}'\. Did you mean .*'{meant}'"):
        parse_site(f"1.{typo}")


@pytest.mark.parametrize("text", ["", "resid_post", "12", "12.", "-1.resid_post", "1.5.resid_post.x", "a.resid_post"])
def test_what_is_no_site_at_all(text):
    with pytest.raises(InputError):
        parse_site(text)


def test_impossible_sites():
    with pytest.raises(InputError, match="negative"):
        Site(-1, SiteKind.RESID_POST)
    with pytest.raises(InputError, match="only 'attn_heads' has heads"):
        Site(0, SiteKind.MLP_IN, head=0)
    with pytest.raises(InputError, match="only 'attn_heads' has heads"):
        parse_site("0.mlp_out.3")


def test_kind_may_be_given_as_text():
    assert Site(0, "mlp_in").kind is SiteKind.MLP_IN
    with pytest.raises(ValueError, match="mlp_inn"):
        Site(0, "mlp_inn")


def test_sites_that_write_the_same_sum():
    assert Site(2, SiteKind.RESID_MID).write == Site(2, SiteKind.ATTN_OUT)
    assert Site(2, SiteKind.RESID_POST).write == Site(2, SiteKind.MLP_OUT)
    assert Site(2, SiteKind.MLP_IN).write == Site(2, SiteKind.MLP_IN)
    assert Site(2, SiteKind.ATTN_HEADS, 1).write == Site(2, SiteKind.ATTN_HEADS, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_lists_its_sites(maps, family):
    found = maps[family]
    kinds = [k for k in SiteKind if not (family in PARALLEL and k is SiteKind.RESID_MID)]
    above = [k for k in kinds if k is not SiteKind.RESID_PRE]
    assert found.sites() == tuple([Site(0, k) for k in kinds] + [Site(1, k) for k in above])
    headed = family in ("qwen3", "gemma2", "gemma3_text")
    for site in found.sites():
        expected = {SiteKind.ATTN_HEADS: 24 if headed else 16, SiteKind.MLP_HIDDEN: 20}.get(site.kind, 16)
        assert found.width(site) == expected
        assert str(site.kind) in found.describe()
    assert found.width(Site(1, SiteKind.ATTN_HEADS, head=2)) == (6 if headed else 4)
    assert (found.d_model, found.n_heads, len(found.blocks)) == (16, 4, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_lists_its_linear_maps(maps, family):
    """All two-dimensional weights inside the blocks, each once, with output and input the right way round."""
    found = maps[family]
    for block in found.blocks:
        listed = {id(module.weight) for module in block.linear_maps().values()}
        present = {id(p) for p in block.module.parameters() if p.dim() == 2}
        assert listed == present
    assert linear_shape(found.blocks[0].mlp_write) == (16, 20)
    assert linear_shape(found.blocks[0].mlp_reads[0])[1] == 16
    assert set(found.linear_maps()) == {(layer, path) for layer in (0, 1) for path in found.blocks[0].linear_maps()}


@pytest.mark.parametrize("family", PARALLEL)
def test_resid_mid_is_refused_on_parallel_layouts(maps, family):
    found = maps[family]
    message = r"has no site 'resid_mid' \(attention and MLP read the same stream\)\. It has: resid_pre"
    with pytest.raises(InputError, match=message):
        found.resolve("0.resid_mid")
    with pytest.raises(InputError, match=message):
        found.sites((SiteKind.RESID_MID,))
    with pytest.raises(InputError, match=message):
        found.resolve_kinds(["mlp_in", "hook_resid_mid"])
    assert "resid_mid" not in found.describe()


def test_layers_and_heads_out_of_range(maps):
    found = maps["llama"]
    with pytest.raises(InputError, match=r"names layer 2; this model has layers 0 to 1"):
        found.resolve("2.resid_post")
    with pytest.raises(InputError, match=r"names head 4; this model has heads 0 to 3"):
        found.resolve("0.attn_heads.4")
    assert found.resolve("blocks.1.hook_resid_pre") == Site(0, SiteKind.RESID_POST)
    assert found.resolve_kinds(["post-block", "hook_z"]) == (SiteKind.RESID_POST, SiteKind.ATTN_HEADS)


def test_a_resid_pre_site_made_by_hand_is_resolved_like_its_name(maps):
    """``Site(1, RESID_PRE)`` and ``'1.resid_pre'`` are one tensor, so they resolve to one site."""
    found = maps["llama"]
    assert found.resolve(Site(1, SiteKind.RESID_PRE)) == found.resolve("1.resid_pre")


@pytest.mark.parametrize("model_type", ["mixtral", "falcon", "granite", "bloom"])
def test_families_of_other_layouts_are_not_taken_for_known_ones(model_type):
    from transformers import AutoConfig

    assert known_description(AutoConfig.for_model(model_type)) is None


def test_members_of_a_family_with_another_layout_are_refused():
    with pytest.raises(UnsupportedModelError, match="GPT-2 with cross-attention"):
        known_description(tiny_config("gpt2", add_cross_attention=True))
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        known_description(tiny_config("gpt2", add_cross_attention=True))
    assert known_description(tiny_config("gpt_neox")).parallel
    assert not known_description(tiny_config("gpt_neox_sequential")).parallel


def test_every_described_family_has_a_tiny_model():
    assert set(DESCRIPTIONS) == {model_type for model_type, _ in FAMILIES.values()}


def test_what_is_no_language_model_is_refused():
    import torch

    with pytest.raises(UnsupportedModelError, match="expected a causal language model of transformers, got Linear"):
        find_sites(torch.nn.Linear(2, 2))
