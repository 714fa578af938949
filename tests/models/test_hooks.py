"""Reading and editing sites through hooks equals the hand-written reference, and leaves no trace."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import peft
import pytest
import torch
from torch import Tensor, nn

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models import edited, find_sites, forward_differentiable_attention, reading, tapping, true_float64
from steerscope.models.compat import checkpoint_activations
from steerscope.models.hooks import _at_input, _at_output, _Stream
from steerscope.models.recomputed import ATTRIBUTE, layers_of
from steerscope.sites import Site, SiteKind
from steerscope.steering import SteeringConfig, get_steering_model
from tests.equivalence import reference
from tests.tiny import FAMILIES, LAYOUTS, VOCAB, tiny_model

TOLERANCE = 1e-9


def batch(num_tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Two prompts, the second left-padded by two tokens: ids, mask, positions."""
    ids = torch.randint(3, VOCAB, (2, num_tokens), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


def logits(model: nn.Module) -> Tensor:
    ids, mask, positions = batch()
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Hooks and outputs are the same after the context as before."""
    hooks, plain = num_hooks(model), logits(model)
    yield
    assert num_hooks(model) == hooks
    assert torch.equal(logits(model), plain)


def vector_edit(width: int, seed: int):
    v = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda read: v.expand_as(read)


def linear_edit(width: int, seed: int):
    a = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / width
    return lambda read: read @ a.T


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_site_reads_as_the_reference_reads(family):
    model = tiny_model(family, torch.float64)
    site_map = find_sites(model)
    sites = [*site_map.sites(), Site(1, SiteKind.ATTN_HEADS, head=2)]
    with true_float64(model), no_trace(model):
        with reading(site_map, sites) as found:
            logits(model)
        assert list(found) != []
        assert set(found) == set(sites)
        for site in sites:
            assert found[site].shape == (2, 5, site_map.width(site)), site
            close(found[site], reference.site_value(model, *batch(), site))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_edit_moves_the_logits_as_the_reference_says(family):
    model = tiny_model(family, torch.float64)
    site_map = find_sites(model)
    sites = [*site_map.sites(), Site(0, SiteKind.ATTN_HEADS, head=1), Site(1, SiteKind.ATTN_HEADS, head=3)]
    with true_float64(model), no_trace(model):
        plain = logits(model)
        for number, site in enumerate(sites):
            # vectors at layer 0, matrices at layer 1 and where there is no layer 1
            make = vector_edit if site.layer == 0 and site.kind is not SiteKind.RESID_PRE else linear_edit
            edit = make(site_map.width(site), number)
            with edited(model, site_map, {site: edit}):
                found = logits(model)
            expected = reference.edited_logits(model, *batch(), site, edit)
            assert (expected - plain).abs().max() > 1e-3, site  # the case is not vacuous
            close(found, expected)


@torch.no_grad()
def test_an_mlp_in_edit_is_not_a_resid_mid_edit():
    """Negative control: the two sites whose confusion the self-check exists for give other logits."""
    model = tiny_model("llama", torch.float64)
    site_map, edit = find_sites(model), vector_edit(16, 0)
    with true_float64(model):
        with edited(model, site_map, {"0.mlp_in": edit}):
            found = logits(model)
        wrong = reference.edited_logits(model, *batch(), Site(0, SiteKind.RESID_MID), edit)
    with pytest.raises(AssertionError):
        close(found, wrong)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_zero_edits_are_bit_equal(family, dtype):
    model = tiny_model(family, dtype)
    site_map = find_sites(model)
    plain = logits(model)
    with edited(model, site_map, dict.fromkeys(site_map.sites(), torch.zeros_like)):
        assert torch.equal(logits(model), plain)
    for site in (*site_map.sites(), Site(0, SiteKind.ATTN_HEADS, head=0)):
        with edited(model, site_map, {site: torch.zeros_like}):
            assert torch.equal(logits(model), plain), site


@torch.no_grad()
def test_hooks_of_others_stay_and_ours_go_also_after_an_error():
    model = tiny_model("llama")
    site_map = find_sites(model)
    calls = []
    block = site_map.blocks[0]
    outside = block.module.register_forward_hook(lambda *_: calls.append("outside"))
    before = num_hooks(model)
    with edited(model, site_map, {"0.resid_post": torch.zeros_like}):
        inside = block.mlp_in.register_forward_pre_hook(lambda *_: calls.append("inside"))
        assert num_hooks(model) > before + 1
    logits(model)
    assert calls == ["inside", "outside"]
    assert num_hooks(model) == before + 1

    def broken(_):
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        edited(model, site_map, {"1.resid_mid": broken, "0.mlp_in": torch.zeros_like}),
    ):
        logits(model)
    assert num_hooks(model) == before + 1
    # a bad site in second place leaves nothing of the first behind
    with pytest.raises(InputError), edited(model, site_map, {"0.mlp_in": broken, "9.mlp_in": broken}):
        pass
    assert num_hooks(model) == before + 1
    outside.remove()
    inside.remove()


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
@torch.no_grad()
def test_edits_of_several_sites_compose(family):
    """The reference edits the block above while the hooks edit many sites of the block below."""
    model = tiny_model(family, torch.float64)
    site_map = find_sites(model)
    names = ("0.attn_heads", "0.attn_out", "0.mlp_in", "0.mlp_hidden", "0.resid_post")
    edits = {site_map.resolve(n): linear_edit(site_map.width(site_map.resolve(n)), i) for i, n in enumerate(names)}
    last = site_map.resolve("1.mlp_out")
    with true_float64(model):
        with edited(model, site_map, {**edits, last: linear_edit(16, 9)}):
            found = logits(model)
        with edited(model, site_map, edits):
            close(found, reference.edited_logits(model, *batch(), last, linear_edit(16, 9)))


@pytest.mark.parametrize("nested", [False, True])
@torch.no_grad()
def test_resid_mid_reads_the_stream_with_the_edit_of_resid_pre_in_it(nested):
    model = tiny_model("llama", torch.float64)
    site_map = find_sites(model)
    pre, mid = linear_edit(16, 0), linear_edit(16, 1)
    with true_float64(model):
        with edited(model, site_map, {"0.resid_pre": pre}):
            expected = reference.edited_logits(model, *batch(), Site(0, SiteKind.RESID_MID), mid)
        if nested:
            with edited(model, site_map, {"0.resid_mid": mid}), edited(model, site_map, {"0.resid_pre": pre}):
                found = logits(model)
        else:
            with edited(model, site_map, {"0.resid_pre": pre, "0.resid_mid": mid}):
                found = logits(model)
        close(found, expected)


@pytest.mark.parametrize(
    "names",
    [
        ("0.attn_out", "0.resid_mid"),
        pytest.param(("0.resid_mid", "0.attn_out")),
    ],
)
@torch.no_grad()
def test_the_order_of_the_mapping_does_not_matter(names):
    model = tiny_model("llama", torch.float64)
    site_map = find_sites(model)
    edits = {"0.attn_out": linear_edit(16, 0), "0.resid_mid": linear_edit(16, 1)}
    with true_float64(model):
        with edited(model, site_map, {"0.attn_out": edits["0.attn_out"]}):
            expected = reference.edited_logits(model, *batch(), Site(0, SiteKind.RESID_MID), edits["0.resid_mid"])
        with edited(model, site_map, {name: edits[name] for name in names}):
            close(logits(model), expected)


@torch.no_grad()
def test_reading_inside_edits_sees_edited_values():
    model = tiny_model("llama", torch.float64)
    site_map = find_sites(model)
    site, edit = Site(0, SiteKind.RESID_MID), vector_edit(16, 3)
    with reading(site_map, [site]) as plain:
        logits(model)
    with edited(model, site_map, {site: edit}), reading(site_map, [site, "0.resid_post"]) as found:
        logits(model)
    close(found[site], plain[site] + edit(plain[site]))
    assert Site(0, SiteKind.RESID_POST) in found


def test_one_site_twice_is_refused():
    model = tiny_model("llama")
    edits = {"0.resid_post": torch.zeros_like, "1.resid_pre": torch.zeros_like}  # one tensor, two names
    with pytest.raises(InputError, match=r"'0\.resid_post' is edited twice"), edited(model, find_sites(model), edits):
        pass


@pytest.mark.parametrize("family", ["llama", "opt"])
@torch.no_grad()
def test_edits_with_a_cache_equal_edits_without(family):
    model = tiny_model(family, torch.float64)
    site_map = find_sites(model)
    ids = batch()[0]
    edits = {s: linear_edit(site_map.width(s), i) for i, s in enumerate(site_map.sites())}
    with true_float64(model), edited(model, site_map, {s: e for s, e in edits.items() if s.layer == 1}):
        whole = model(input_ids=ids, use_cache=False).logits
        start = model(input_ids=ids[:, :3], use_cache=True)
        rest = model(input_ids=ids[:, 3:4], past_key_values=start.past_key_values, use_cache=True)
    close(start.logits, whole[:, :3])
    close(rest.logits[:, 0], whole[:, 3])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("family", LAYOUTS)
def test_derivatives_pass_through_the_hooks_both_ways(family):
    """jvp and backward along a vector edit equal the reference's dense Jacobian."""
    model = tiny_model(family, torch.float64)
    site_map = find_sites(model)
    site = Site(0, SiteKind.MLP_OUT)
    v, mask = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), batch()[1]

    def outputs(found: Tensor) -> Tensor:
        return found[:, -1, :3].reshape(-1)

    def run(parameter: Tensor) -> Tensor:
        with edited(model, site_map, {site: lambda read: parameter * mask[..., None]}):
            return outputs(logits(model))

    with true_float64(model), forward_differentiable_attention(model):
        dense = reference.dense_edit_jacobian(outputs, model, *batch(), site, "vector")
        forward = torch.func.jvp(run, (torch.zeros_like(v),), (v,))[1]
        zero = torch.zeros_like(v, requires_grad=True)
        (backward,) = torch.autograd.grad(run(zero)[2], zero)
    assert dense.abs().max() > 1e-3
    close(forward, dense @ v)
    close(backward, dense[2])


# --- modules that return more than a tensor, and flattened tokens ---


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, hidden_states):
        return self.map(hidden_states), "rest"


def test_outputs_that_are_tuples_keep_their_other_entries():
    module, stream = _Pair(), _Stream()
    x = stream.h = torch.randn(2, 3, 4, dtype=torch.float64)
    plain = module(x)[0]
    seen = []
    handle = _at_output(module, stream, lambda value, read: seen.append(read) or value + 1, add_stream=True)
    moved, rest = module(x)
    assert rest == "rest"
    assert torch.equal(moved, plain + 1)
    assert torch.equal(seen[0], x + plain)
    handle.remove()
    handle = _at_output(module, stream, lambda value, read: None)
    assert torch.equal(module(x)[0], plain)
    handle.remove()


def test_outputs_without_a_tensor_are_refused():
    module, stream = nn.Identity(), _Stream()
    _at_output(module, stream, lambda value, read: None)
    with pytest.raises(UnsupportedModelError, match="expected a tensor from the block, got dict"):
        module({"hidden": torch.zeros(1)})


@pytest.mark.parametrize("by_name", [False, True])
@torch.no_grad()
def test_inputs_by_position_or_name_and_flattened_tokens(by_name):
    module, stream = _Pair(), _Stream()
    stream.h = torch.zeros(2, 3, 4, dtype=torch.float64)
    flat = torch.randn(6, 4, dtype=torch.float64)
    seen = []
    handle = _at_input(module, stream, lambda value, read: seen.append(read.shape) or value + 1)
    found = module(hidden_states=flat)[0] if by_name else module(flat)[0]
    handle.remove()
    assert seen == [(2, 3, 4)]
    assert found.shape == (6, 4)
    close(found, module(flat + 1)[0])


def test_taps_see_what_earlier_taps_left():
    model = tiny_model("llama", torch.float64)
    site_map = find_sites(model)
    site, seen = Site(1, SiteKind.MLP_HIDDEN), []
    with tapping(site_map, {site: lambda value, read: value * 0}), reading(site_map, [site]) as found:
        logits(model)
    assert torch.count_nonzero(found[site]) == 0
    with tapping(site_map, {site: lambda value, read: seen.append(value is read)}):
        logits(model)
    assert seen == [True]


# --- wrapped by an adapter library ---


# peft 0.21 reads a flag that transformers 5.23 renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_models_wrapped_by_peft(family):
    model = tiny_model(family, torch.float64)
    plain = logits(model)
    targets = {"llama": ["q_proj", "o_proj", "gate_proj", "down_proj"], "gpt2": ["attn.c_proj", "c_fc", "mlp.c_proj"]}
    config = peft.LoraConfig(r=2, target_modules=targets[family], fan_in_fan_out=family == "gpt2")
    wrapped = peft.get_peft_model(model, config).double().eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert (logits(wrapped) - plain).abs().max() > 1e-2
    site_map = find_sites(wrapped)
    sites = site_map.sites()
    assert sites == find_sites(tiny_model(family)).sites()
    base = wrapped.get_base_model()
    with true_float64(wrapped), no_trace(wrapped):
        with reading(site_map, sites) as found:
            logits(wrapped)
        for number, site in enumerate(sites):
            close(found[site], reference.site_value(base, *batch(), site))
            edit = linear_edit(site_map.width(site), number)
            with edited(wrapped, site_map, {site: edit}):
                moved = logits(wrapped)
            close(moved, reference.edited_logits(base, *batch(), site, edit))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_gradients_through_edits_of_blocks_that_run_again_in_backward(reentrant, inside):
    """Under gradient checkpointing, with backward inside the context and after it."""

    def gradients(checkpoints: bool, inside: bool) -> list[torch.Tensor]:
        model = tiny_model("llama").train()
        if checkpoints:
            checkpoint_activations(model, {"use_reentrant": reentrant})
        site_map, outer, inner = find_sites(model), torch.full((16,), 0.1), torch.full((16,), 0.2)
        entered = model.get_input_embeddings()(torch.tensor([[5, 6, 7, 8]])).detach()
        leaves = [leaf.requires_grad_() for leaf in (entered, outer, inner)]
        with ExitStack() as stack:
            stack.enter_context(edited(model, site_map, {"1.mlp_out": lambda x: 0.1 * x + outer}))
            stack.enter_context(
                edited(model, site_map, {"0.attn_out": lambda x: inner * x, "1.mlp_out": lambda x: x * x})
            )
            loss = model(inputs_embeds=entered, use_cache=False).logits.square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return [leaf.grad for leaf in leaves]

    expected, found = gradients(False, True), gradients(True, inside)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_backward_of_a_checkpointed_pass_inside_other_edits_is_refused():
    model = tiny_model("llama").train()
    checkpoint_activations(model, {"use_reentrant": False})
    site_map = find_sites(model)
    entered = model.get_input_embeddings()(torch.tensor([[5, 6, 7, 8]])).detach().requires_grad_()
    with edited(model, site_map, {"1.mlp_out": lambda x: 0.1 * x}):
        loss = model(inputs_embeds=entered, use_cache=False).logits.square().mean()
    with (
        edited(model, site_map, {"1.mlp_out": lambda x: -0.5 * x}),
        pytest.raises(InputError, match="runs again in backward inside"),
    ):
        loss.backward()


def test_edits_of_a_steered_model_that_trains_pile_up_nothing_on_its_blocks():
    model = get_steering_model(tiny_model("llama"), SteeringConfig("0.mlp_out", rank=2)).train()
    checkpoint_activations(model, {"use_reentrant": False})
    block = model.site_map.blocks[1].module
    depths = []
    for _ in range(3):
        with edited(model, {"1.mlp_out": lambda x: 0.1 * x}):
            model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
        depths.append(len(list(layers_of(block.__dict__[ATTRIBUTE]))))
    assert len(set(depths)) == 1
    assert not any(getattr(one, "contexts", ()) for one in layers_of(block.__dict__[ATTRIBUTE]))
