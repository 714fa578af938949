"""The reference itself: its hand-written blocks are the model's, its derivatives agree with each other."""

import ast
from pathlib import Path

import pytest
import torch

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models import true_float64
from steerscope.sites import Site, SiteKind
from tests.equivalence import reference, reference_blocks
from tests.tiny import FAMILIES, VOCAB, tiny_model

PARALLEL = ("gpt_neox", "phi")


def batch(padded: bool = False, num_tokens: int = 5):
    """Return ids, mask and positions of two prompts, the second one two tokens shorter (left-padded)."""
    ids = torch.randint(3, VOCAB, (2, num_tokens), generator=torch.Generator().manual_seed(5))
    if not padded:
        return ids, None, None
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


def outputs(logits: torch.Tensor) -> torch.Tensor:
    """Three numbers per prompt at the last token."""
    return logits[:, -1, :3].reshape(-1)


def close(found, expected, rtol=1e-9):
    atol = rtol * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def test_shares_no_code_with_the_fast_paths():
    imported = {
        f"{node.module}" if isinstance(node, ast.ImportFrom) else alias.name
        for module in (reference, reference_blocks)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    own = {name for name in imported if name.startswith("steerscope")}
    assert own == {"steerscope.sites", "steerscope.errors"}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_written_out_blocks_are_the_models_blocks(family):
    model = tiny_model(family, torch.float64)
    ids, mask, positions = batch(padded=True)
    with true_float64(model):
        plain = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for layer in range(2):
            site = Site(layer, SiteKind.RESID_POST)
            found = reference.edited_logits(model, ids, mask, positions, site, torch.zeros_like)
            close(found, plain, 1e-12)
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_edits_obey_the_equations_of_the_layout(family):
    """What can be said without recomputing: which tensors of the block move, and by how much."""
    model = tiny_model(family, torch.float64)
    ids = batch()[0]
    delta = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def logits(kind):
        return reference.edited_logits(model, ids, None, None, Site(0, kind), lambda _: delta)

    def value(kind):
        return reference.site_value(model, ids, None, None, Site(0, kind))

    with true_float64(model):
        # the same sum is edited: mlp_out with resid_post, attn_out with resid_mid (or, in parallel, resid_post)
        close(logits(SiteKind.MLP_OUT), logits(SiteKind.RESID_POST), 1e-11)
        if family in PARALLEL:
            close(logits(SiteKind.ATTN_OUT), logits(SiteKind.RESID_POST), 1e-11)
        else:
            close(logits(SiteKind.ATTN_OUT), logits(SiteKind.RESID_MID), 1e-11)
            assert not torch.allclose(logits(SiteKind.RESID_MID), logits(SiteKind.RESID_POST), rtol=1e-3)
        assert not torch.allclose(logits(SiteKind.MLP_IN), logits(SiteKind.RESID_POST), rtol=1e-3)
        out = value(SiteKind.RESID_PRE) + value(SiteKind.ATTN_OUT) + value(SiteKind.MLP_OUT)
        close(value(SiteKind.RESID_POST), out, 1e-12)
        above = reference.site_value(model, ids, None, None, Site(1, SiteKind.RESID_PRE))
        close(value(SiteKind.RESID_POST), above, 1e-12)


@pytest.mark.parametrize("family", ["vector", "linear"])
@pytest.mark.parametrize("kind", ["attn_heads", "resid_mid", "mlp_in", "mlp_hidden"])
def test_edit_jacobian_by_autograd_equals_differences(kind, family):
    # narrower still: differences of a linear edit take two passes per entry of a matrix
    small = {"hidden_size": 6, "intermediate_size": 5, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = tiny_model("llama", torch.float64, **small, head_dim=4)
    site = Site(0, SiteKind(kind), head=1 if kind == "attn_heads" else None)
    arguments = (outputs, model, *batch(padded=True), site, family)
    with true_float64(model):
        exact = reference.dense_edit_jacobian(*arguments)
        measured = reference.dense_edit_jacobian(*arguments, method="difference")
    width = {"attn_heads": 4, "mlp_hidden": 5}.get(kind, 6)
    assert exact.shape == ((6, width) if family == "vector" else (6, width, width))
    assert exact.abs().max() > 1e-3
    close(exact, measured, 1e-6)


def test_linear_jacobian_is_indexed_written_then_read():
    """A linear edit with one entry A[w, r] is the vector edit h_r e_w, token by token."""
    model = tiny_model("llama", torch.float64)
    ids, mask, positions = batch(padded=True)
    site = Site(1, SiteKind.RESID_MID)
    with true_float64(model):
        dense = reference.dense_edit_jacobian(outputs, model, ids, mask, positions, site, "linear")

        def moved(t):
            def edit(h):
                delta = torch.zeros_like(h)
                delta[..., 3] = t * h[..., 7] * mask
                return delta

            return outputs(reference.edited_logits(model, ids, mask, positions, site, edit).detach())

        step = 1e-5
        measured = (moved(step) - moved(-step)) / (2 * step)
    close(dense[:, 3, 7], measured, 1e-6)
    assert not torch.allclose(dense[:, 7, 3], measured, rtol=1e-2)


def test_padding_is_not_edited():
    """Logits at a padded token, which no other token's edit reaches in the last block, do not move."""
    model = tiny_model("gpt2", torch.float64)
    site = Site(1, SiteKind.RESID_POST)
    for token, moves in ((1, False), (2, True)):
        found = reference.dense_edit_jacobian(
            lambda logits, t=token: logits[1, t, :3], model, *batch(padded=True), site, "vector"
        )
        assert bool(found.abs().max() > 1e-3) is moves
        assert moves or torch.count_nonzero(found) == 0


def test_a_padded_prompt_gives_the_numbers_of_the_prompt_alone():
    model = tiny_model("gpt2", torch.float64)
    ids, mask, positions = batch(padded=True)
    site = Site(0, SiteKind.RESID_POST)
    with true_float64(model):
        together = reference.dense_edit_jacobian(outputs, model, ids, mask, positions, site, "vector")
        alone = reference.dense_edit_jacobian(outputs, model, ids[1:, 2:], None, None, site, "vector")
    close(together[3:], alone, 1e-10)


def test_bias_jacobian_is_the_vector_jacobian():
    """P13: a fixed vector at mlp_out is the bias of the down projection (GPT-2's has one)."""
    model = tiny_model("gpt2", torch.float64)
    ids = batch()[0]
    with true_float64(model):
        vector = reference.dense_edit_jacobian(outputs, model, ids, None, None, Site(1, SiteKind.MLP_OUT), "vector")
        bias = reference.dense_weight_jacobian(outputs, model, ids, None, None, "transformer.h.1.mlp.c_proj.bias")
    close(vector, bias, 1e-10)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize("tied", [False, True])
def test_weight_jacobian_equals_central_differences(name, tied):
    model = tiny_model("llama", torch.float64, tie_word_embeddings=tied)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as in a loaded model
    ids, mask, positions = batch(padded=True)
    weight = model.get_parameter(name)
    update = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def run():
        return outputs(model(input_ids=ids, attention_mask=mask, position_ids=positions).logits)

    with true_float64(model):
        dense = reference.dense_weight_jacobian(outputs, model, ids, mask, positions, name)
        measured = reference.central_difference_shift(model, run, {name: update}, 1e-5)
    assert dense.shape == (6, *weight.shape)
    assert measured.abs().max() > 1e-3
    close(torch.einsum("rij,ij->r", dense, update), measured, 1e-6)
    assert not weight.requires_grad


def test_central_difference_of_several_outputs_and_weights():
    model = tiny_model("llama", torch.float64)
    ids = batch()[0]
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"]
    update = {n: torch.ones_like(model.get_parameter(n)) for n in names}

    def run():
        found = model(input_ids=ids, output_hidden_states=True)
        return {"logits": found.logits, "first": found.hidden_states[1]}

    both = reference.central_difference_shift(model, run, update, 1e-4)
    pair = reference.central_difference_shift(model, lambda: tuple(run().values()), update, 1e-4)
    assert set(both) == {"logits", "first"}
    assert torch.equal(both["logits"], pair[0])
    assert torch.equal(both["first"], pair[1])
    assert both["first"].abs().max() > 1e-3


def test_weights_come_back_bit_for_bit_even_after_an_error():
    model = tiny_model("llama", torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    update = {name: torch.full_like(before[name], 1e-3)}
    runs = []

    def fails_the_second_time():
        runs.append(model.get_parameter(name).detach().clone())
        if len(runs) == 2:
            raise KeyboardInterrupt
        return torch.zeros(1)

    with pytest.raises(KeyboardInterrupt):
        reference.central_difference_shift(model, fails_the_second_time, update, 0.1)
    assert not torch.equal(runs[1], before[name])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    # a result that is a view of the weights is not dragged along with them
    found = reference.central_difference_shift(model, lambda: model.get_parameter(name), update, 0.5)
    torch.testing.assert_close(found, update[name], rtol=1e-3, atol=1e-6)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_forwards_come_back_after_an_error():
    model = tiny_model("llama")

    def edit(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reference.edited_logits(model, batch()[0], None, None, Site(0, SiteKind.ATTN_HEADS), edit)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_kernel_is_the_gram_matrix():
    jacobian = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = reference.kernel(jacobian)
    for i in range(3):
        for j in range(3):
            assert float(found[i, j]) == pytest.approx(float((jacobian[i] * jacobian[j]).sum()))


@pytest.mark.parametrize("family", PARALLEL)
def test_parallel_blocks_have_no_resid_mid(family):
    with pytest.raises(InputError, match=r"no site 'resid_mid'\. It has: resid_pre, attn_heads"):
        reference.site_value(tiny_model(family), batch()[0], None, None, Site(0, SiteKind.RESID_MID))


def test_refusals():
    model, ids = tiny_model("llama"), batch()[0]
    post = Site(0, SiteKind.RESID_POST)
    with pytest.raises(InputError, match="layers 0 to 1"):
        reference.site_value(model, ids, None, None, Site(2, SiteKind.RESID_POST))
    with pytest.raises(InputError, match="heads 0 to 3"):
        reference.site_value(model, ids, None, None, Site(0, SiteKind.ATTN_HEADS, head=4))
    with pytest.raises(InputError, match=r"no weight 'lm_head\.wieght'\. Did you mean 'lm_head\.weight'"):
        reference.dense_weight_jacobian(outputs, model, ids, None, None, "lm_head.wieght")
    with pytest.raises(InputError, match="one axis of numbers"):
        reference.dense_edit_jacobian(lambda logits: logits, model, ids, None, None, post, "vector")
    with pytest.raises(InputError, match="unknown edit form 'low_rank'"):
        reference.dense_edit_jacobian(outputs, model, ids, None, None, post, "low_rank")
    with pytest.raises(InputError, match="unknown method 'jvp'"):
        reference.dense_edit_jacobian(outputs, model, ids, None, None, post, "vector", method="jvp")
    wrong = {"lm_head.weight": torch.zeros(3)}
    with pytest.raises(InputError, match=r"shape \(3,\); the weight has \(64, 16\)"):
        reference.central_difference_shift(model, lambda: torch.zeros(1), wrong, 1e-3)
    with pytest.raises(InputError, match="dropout"):
        reference.site_value(model.train(), ids, None, None, post)
    model.eval().config.model_type = "mixtral"
    with pytest.raises(UnsupportedModelError, match=r"family 'mixtral'\. Did you mean 'mistral'"):
        reference.site_value(model, ids, None, None, post)


def test_a_derivative_that_cannot_exist_is_no_silent_zero():
    model, ids = tiny_model("llama"), batch()[0]
    first_layer = "model.layers.0.mlp.up_proj.weight"
    constant = torch.ones(64, requires_grad=True)
    with pytest.raises(InputError, match="do not depend on weight"):
        reference.dense_weight_jacobian(lambda _: constant[:2] * 2, model, ids, None, None, first_layer)


def test_tied_weights_under_two_names_are_refused():
    model = tiny_model("llama", tie_word_embeddings=True)
    update = dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), torch.zeros(VOCAB, 16))
    with pytest.raises(InputError, match="one tied tensor twice"):
        reference.central_difference_shift(model, lambda: torch.zeros(1), update, 1e-3)
