"""Spectra and needed edits: known matrices, and edits that are tried out in the running model."""

from __future__ import annotations

import pytest
import torch

from steerscope import edited, reading, true_float64
from steerscope.analysis.theory.block_call import block_calls
from steerscope.analysis.theory.common import block_tensors, of_layer
from steerscope.analysis.theory.conditioning import Spectrum, conditioning, newton
from steerscope.analysis.theory.jacobians import mlp_jacobian
from steerscope.models.attention import forward_differentiable_attention
from steerscope.sites import SiteKind
from tests.analysis.theory.cases import assert_same_bits, bits, loaded, tokens, update_of
from tests.tiny import LAYOUTS


def test_spectrum_of_a_known_matrix():
    found = Spectrum.of(torch.diag(torch.tensor([8.0, 4.0, 2.0])))
    assert (found.largest, found.smallest, found.condition) == pytest.approx((8, 2, 4))
    assert found.quantiles[0] == pytest.approx(8)
    assert found.quantiles[-1] == pytest.approx(2)
    assert Spectrum.of(torch.zeros(2, 2)).condition == float("inf")


@pytest.mark.parametrize("family", LAYOUTS)
def test_measured_in_every_layout(family):
    model, ids = loaded(family), tokens()
    before = bits(model)
    with true_float64(model.model):
        found = conditioning(model, update_of(model, 0.02), ids, (0, 1), (2, 5))
        z = block_tensors(model, ids, (1,))[1][SiteKind.MLP_IN][0, [2, 5]]
        jacobian = mlp_jacobian(model.site_map.blocks[1], z)
    assert_same_bits(model, before)
    assert [one.layer for one in found] == [0, 1]
    for matrix, spectrum in zip(jacobian, found[1].jacobian, strict=True):
        assert spectrum.condition == pytest.approx(float(torch.linalg.cond(matrix)), rel=1e-6)
    for one in found:
        assert len(one.mlp_in) == len(one.attn_out) == 2
        assert all(edit.edit > 0 and edit.target > 0 for edit in one.attn_out)
    # Of GPT-2's four targets one lies beyond a fold of the block's map, where Newton's method ends short of it.
    errors = [edit.error for one in found for edit in one.attn_out]
    assert sum(error < 1e-8 for error in errors) >= (3 if family == "gpt2" else 4), errors


def test_newton_edit_gives_the_updated_block_in_the_running_model():
    model, ids, layer = loaded(), tokens(rows=1), 1
    update = of_layer(model, update_of(model, 0.02), layer)
    with true_float64(model.model), forward_differentiable_attention(model.model):
        call = block_calls(model, ids, (layer,))[layer]
        tensors = {kind: value[0] for kind, value in block_tensors(model, ids, (layer,))[layer].items()}
        target = call.output_with(update)[0]
        edit, steps = newton(call.block, tensors, target)
        with (
            torch.no_grad(),
            edited(model.model, model.site_map, {f"{layer}.attn_out": lambda _: edit}),
            reading(model.site_map, [f"{layer}.resid_post"]) as seen,
        ):
            model.model(input_ids=ids)
    (after,) = seen.values()
    torch.testing.assert_close(after[0], target, rtol=1e-8, atol=1e-8)
    assert (tensors[SiteKind.RESID_POST] - target).norm() > 1e-3 * target.norm()  # without the edit it is not there
    assert all(2 <= count <= 20 for count in steps)


def test_linear_solution_is_the_small_edit_limit():
    """At mlp_in the linear solution is nearly exact for a tiny update and not for a large one."""
    model, ids = loaded(), tokens()
    with true_float64(model.model):
        tiny, large = (conditioning(model, update_of(model, size), ids, (1,), (3,))[0] for size in (1e-6, 0.1))
    assert tiny.mlp_in[0].error < 1e-3
    assert large.mlp_in[0].error > 10 * tiny.mlp_in[0].error
    # Linear in the update: the needed edit grows with it.
    assert large.mlp_in[0].edit / tiny.mlp_in[0].edit == pytest.approx(1e5, rel=1e-6)


def test_no_mlp_update_needs_no_edit_before_the_mlp():
    model = loaded()
    with true_float64(model.model):
        (found,) = conditioning(model, update_of(model, only="self_attn"), tokens(), (1,), (3,))
    assert found.mlp_in == ()
    assert found.attn_out[0].edit > 0
