"""The self-check on load: true for every family, red for every wrong description and every wrong hook."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models import BlockDescription, edited, find_sites, hooks, reading
from steerscope.models.layouts import FAMILIES as DESCRIPTIONS
from steerscope.models.layouts.gpt_neox_phi import NEOX, NEOX_SEQUENTIAL
from steerscope.models.selfcheck import check_sites
from steerscope.site_kinds import Branch
from steerscope.sites import Site, SiteKind
from tests.tiny import FAMILIES, VOCAB, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_passes_for_every_family(family, dtype):
    model = tiny_model(family, dtype)
    check_sites(model, find_sites(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def check(family: str, dtype: torch.dtype = torch.float32, **changes) -> None:
    """Check a tiny model against its description with some fields changed."""
    model = tiny_model(family, dtype)
    true = DESCRIPTIONS[FAMILIES[family][0]]
    check_sites(model, find_sites(model, replace(true, **changes)))


@pytest.mark.parametrize(
    ("family", "changes", "complaint"),
    [
        # norms on writes forgotten
        ("gemma2", {"attn_post_norm": None}, "mlp_in"),
        ("gemma2", {"mlp_post_norm": None}, "resid_post"),
        ("olmo2", {"attn_post_norm": None}, "mlp_in"),
        # norms on reads forgotten, invented or exchanged
        ("llama", {"mlp_norm": None}, "mlp_in"),
        ("llama", {"attn_norm": None}, "(resid_mid' is not|does not move the block)"),
        ("olmo2", {"attn_norm": "post_attention_layernorm"}, "(resid_mid' is not|does not move the block)"),
        ("llama", {"attn_norm": "post_attention_layernorm", "mlp_norm": "input_layernorm"}, "mlp_in"),
        ("gemma2", {"mlp_norm": "post_attention_layernorm"}, "mlp_in"),
        # the gate
        ("llama", {"gated": False, "mlp_reads": ("mlp.gate_proj",)}, "mlp_hidden"),
        ("llama", {"gated": False}, "mlp_hidden"),
        ("llama", {"mlp_reads": ("mlp.up_proj", "mlp.gate_proj")}, "mlp_hidden"),
        ("llama", {"mlp_reads": ("mlp.gate_proj", "mlp.gate_proj")}, "mlp_hidden"),
        # the flag of parallel blocks, both ways
        ("llama", {"parallel": True}, "mlp_in"),
        ("gpt2", {"parallel": True}, "mlp_in"),
        ("gpt_neox", {"parallel": False}, "mlp_in"),
        ("phi", {"parallel": False}, "mlp_in"),
        # the wrong projection
        ("llama", {"attn_write": "self_attn.q_proj"}, "mlp_in"),
        ("gpt_neox", {"mlp_norm": "input_layernorm"}, "mlp_in"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_wrong_descriptions_are_caught(family, changes, complaint, dtype):
    with pytest.raises(UnsupportedModelError, match=rf"self-check: .*{complaint}.*correct the BlockDescription"):
        check(family, dtype, **changes)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"gated": True}),  # half as many channels as the down projection reads
        ("phi3", {"gated": False}),  # twice as many
    ],
)
def test_wrong_descriptions_that_change_a_shape_are_caught(family, changes):
    with pytest.raises(UnsupportedModelError, match="self-check"):
        check(family, **changes)


@pytest.mark.parametrize("reads", [("self_attn.q_proj",), ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj")])
def test_forgotten_maps_of_the_attention_are_caught(reads):
    with pytest.raises(UnsupportedModelError):
        check("llama", attn_reads=reads)


def test_the_two_neox_layouts_are_told_apart():
    parallel, sequential = tiny_model("gpt_neox"), tiny_model("gpt_neox_sequential")
    with pytest.raises(UnsupportedModelError, match="self-check"):
        check_sites(parallel, find_sites(parallel, NEOX_SEQUENTIAL))
    with pytest.raises(UnsupportedModelError, match="self-check"):
        check_sites(sequential, find_sites(sequential, NEOX))


def test_paths_that_lead_nowhere_are_named():
    with pytest.raises(UnsupportedModelError, match=r"no module 'mlp\.down': 'down' is missing in LlamaMLP, which has"):
        check("llama", mlp_write="mlp.down")
    with pytest.raises(UnsupportedModelError, match=r"no activation function at 'mlp\.activation'"):
        check("llama", activation="mlp.activation")


# --- wrong hooks: every kind attached at another place that reads the same tensor ---


def attach_elsewhere(monkeypatch, kind: SiteKind, place):
    true = hooks._attach

    def wrong(block, asked, stream, tap):
        return place(block, stream, tap) if asked is kind else true(block, asked, stream, tap)

    monkeypatch.setattr(hooks, "_attach", wrong)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gpt_neox", "phi", "olmo2")])
def test_resid_mid_on_the_norm_before_the_mlp_is_caught(monkeypatch, family):
    """That hook reads resid_mid, so every check of what is read passes, but it spares the skip."""
    model = tiny_model(family)
    site_map = find_sites(model)
    with reading(site_map, ["1.resid_mid"]) as true:
        model(input_ids=torch.tensor([[3, 4, 5]]))
    attach_elsewhere(monkeypatch, SiteKind.RESID_MID, lambda b, s, tap: hooks._at_input(b.mlp_norm, s, tap))
    with reading(site_map, ["1.resid_mid"]) as found:
        model(input_ids=torch.tensor([[3, 4, 5]]))
    site = Site(1, SiteKind.RESID_MID)
    torch.testing.assert_close(found[site], true[site])
    with pytest.raises(UnsupportedModelError, match=r"an edit of '\d\.resid_mid' does not move the block"):
        check_sites(model, site_map)


@pytest.mark.parametrize(
    ("family", "kind", "place", "complaint"),
    [
        # reads mlp_in rightly, but the shared norm's output also feeds the attention
        ("phi", SiteKind.MLP_IN, lambda b, s, tap: hooks._at_output(b.mlp_norm, s, tap), "mlp_in' does not move"),
        # the projection's output before the norm on what is written: reads and writes another tensor
        ("gemma2", SiteKind.ATTN_OUT, lambda b, s, tap: hooks._at_output(b.attn_write, s, tap), "attn_out"),
        ("gemma2", SiteKind.MLP_OUT, lambda b, s, tap: hooks._at_output(b.mlp_write, s, tap), "mlp_out"),
        # resid_post of the block read at the MLP's writer
        ("llama", SiteKind.RESID_POST, lambda b, s, tap: hooks._at_output(b.writer(Branch.MLP), s, tap), "resid_post"),
        # the MLP's input reached at the norm's input
        ("llama", SiteKind.MLP_IN, lambda b, s, tap: hooks._at_input(b.mlp_norm, s, tap), "mlp_in"),
        # only the gate reads the edit
        ("llama", SiteKind.MLP_IN, lambda b, s, tap: hooks._at_input(b.mlp_reads[0], s, tap), "mlp_in' does not move"),
        # only the queries' input
        ("llama", SiteKind.ATTN_HEADS, lambda b, s, tap: hooks._at_input(b.attn_reads[0], s, tap), "attn_out"),
        # resid_mid that reads what attention wrote, without the stream
        ("llama", SiteKind.RESID_MID, lambda b, s, tap: hooks._at_output(b.attn_write, s, tap), "resid_mid"),
    ],
)
def test_hooks_at_wrong_places_are_caught(monkeypatch, family, kind, place, complaint):
    model = tiny_model(family)
    attach_elsewhere(monkeypatch, kind, place)
    with pytest.raises(UnsupportedModelError, match=rf"self-check: .*{complaint}"):
        check_sites(model, find_sites(model))


def test_edits_that_are_not_added_are_caught(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(hooks, "_adding", lambda edit: lambda value, read: value * 1.001 + edit(read))
    with pytest.raises(UnsupportedModelError, match="zero edits at all sites changed the logits"):
        check_sites(model, find_sites(model))
    monkeypatch.setattr(hooks, "_adding", lambda edit: lambda value, read: value + 0 * edit(read))
    with pytest.raises(
        UnsupportedModelError, match=r"an edit of '0\.resid_pre' left the logits as they were: .* dtype='float32'"
    ):
        check_sites(model, find_sites(model))
    monkeypatch.setattr(hooks, "_adding", lambda edit: lambda value, read: value + 2 * edit(read))
    with pytest.raises(UnsupportedModelError, match="does not move the block"):
        check_sites(model, find_sites(model))


# --- a family steerscope does not know, whose blocks return tuples ---


class _Attention(nn.Module):
    """Every token sees the mean of the tokens up to it."""

    def __init__(self):
        super().__init__()
        self.value, self.out = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, hidden_states, **_):
        counts = torch.arange(1, hidden_states.shape[1] + 1).view(1, -1, 1)
        return self.out(self.value(hidden_states).cumsum(1) / counts), None


class _TupleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2, self.attn = nn.LayerNorm(8), nn.LayerNorm(8), _Attention()
        self.fc1, self.fc2, self.act = nn.Linear(8, 10), nn.Linear(10, 8), nn.Tanh()

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.attn(self.n1(hidden_states))[0]
        return hidden_states + self.fc2(self.act(self.fc1(self.n2(hidden_states)))), "attention weights"


class _TupleModel(nn.Module):
    """Enough of a causal language model for find_sites and check_sites."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"num_attention_heads": 2, "model_type": "tuple"})()
        self.embed, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)
        self.layers = nn.ModuleList(_TupleBlock() for _ in range(3))

    def get_decoder(self):
        return self

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, **_):
        h = self.embed(input_ids)
        for block in self.layers:
            h, rest = block(h)
            assert rest == "attention weights"
        return type("Output", (), {"logits": self.head(h)})()


DESCRIPTION = BlockDescription(
    layout="a block of tuples",
    attn="attn",
    attn_reads=("attn.value",),
    attn_write="attn.out",
    mlp_in="fc1",
    mlp_reads=("fc1",),
    mlp_write="fc2",
    activation="act",
    gated=False,
    attn_norm="n1",
    mlp_norm="n2",
)


@torch.no_grad()
def test_described_blocks_that_return_tuples():
    torch.manual_seed(0)
    model = _TupleModel().eval()
    found = find_sites(model).description  # recognised: nothing in a table has its names
    assert replace(found, layout=DESCRIPTION.layout) == DESCRIPTION
    site_map = find_sites(model, DESCRIPTION)
    check_sites(model, site_map)
    assert site_map.width(Site(0, SiteKind.ATTN_HEADS, head=1)) == 3

    ids = torch.tensor([[3, 4, 5]])
    delta = torch.randn(1, 3, 8)
    with edited(model, site_map, {"2.resid_post": lambda _: delta}):
        moved = model(ids).logits
    expected = model(ids).logits + delta @ model.head.weight.T
    torch.testing.assert_close(moved, expected)
    with pytest.raises(UnsupportedModelError, match="self-check"):
        check_sites(model, find_sites(model, replace(DESCRIPTION, parallel=True)))


def test_the_check_leaves_no_hooks_behind_when_it_fails(monkeypatch):
    model = tiny_model("llama")
    attach_elsewhere(monkeypatch, SiteKind.RESID_MID, lambda b, s, tap: hooks._at_input(b.mlp_norm, s, tap))
    plain = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    with pytest.raises(UnsupportedModelError):
        check_sites(model, find_sites(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    after: Tensor = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    assert torch.equal(after, plain)
