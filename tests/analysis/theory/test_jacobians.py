"""Derivatives of one block by its sites, in every layout, against finite differences through hooks."""

from __future__ import annotations

import pytest
import torch

from steerscope import InputError, edited, reading, true_float64
from steerscope.analysis.theory.block_call import block_calls
from steerscope.analysis.theory.common import block_tensors, of_layer, scaled
from steerscope.analysis.theory.jacobians import effective_weight, mlp_jacobian, shared_maps, write_jacobian
from steerscope.equivalence.closed_forms import GatedWeights, gated_input_jacobian
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.changed_weights import with_update
from steerscope.sites import SiteKind
from tests.analysis.theory.cases import loaded, tokens, update_of
from tests.tiny import LAYOUTS

STEP = 1e-6


@pytest.mark.parametrize("family", [*LAYOUTS, "olmo2", "opt", "phi3"])
def test_write_jacobian_against_finite_differences(family):
    model, ids, layer = loaded(family), tokens(), 1
    generator = torch.Generator().manual_seed(0)
    post = f"{layer}.resid_post"
    with true_float64(model.model):
        tensors = block_tensors(model, ids, (layer,))[layer]
        block = model.site_map.blocks[layer]

        def output(edit):
            with torch.no_grad(), edited(model.model, model.site_map, edit), reading(model.site_map, [post]) as found:
                model.model(input_ids=ids)
            return next(iter(found.values()))

        for kind in model.site_map.description.kinds[1:]:
            along = torch.randn(tensors[kind].shape, generator=generator, dtype=torch.float64)
            site = f"{layer}.{kind}"
            measured = (output({site: lambda _, a=along: STEP * a}) - output({site: lambda _, a=along: -STEP * a})) / (
                2 * STEP
            )
            flat = {k: v.reshape(-1, v.shape[-1]) for k, v in tensors.items()}
            maps = write_jacobian(block, kind, flat)
            rows = along.reshape(-1, along.shape[-1])
            predicted = rows if maps is None else torch.einsum("tow,tw->to", maps, rows)
            assert measured.norm() > 0.1
            torch.testing.assert_close(predicted, measured.reshape(predicted.shape), rtol=1e-6, atol=1e-7)
        seen = []
        for together in shared_maps(block, flat):
            for kind in together.right:
                seen.append(kind)
                alone = write_jacobian(block, kind, flat)
                for token in range(len(flat[kind])):
                    one = together.at(kind, token)
                    one = torch.eye(16, dtype=torch.float64) if one is None else one
                    expected = torch.eye(16, dtype=torch.float64) if alone is None else alone[token]
                    torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-10)
        assert sorted(seen) == sorted(model.site_map.description.kinds[1:])
        with pytest.raises(InputError, match="other tokens"):
            write_jacobian(block, SiteKind.RESID_PRE, flat)


def test_mlp_jacobian_equals_the_closed_form_and_not_the_published_broadcast():
    model = loaded(intermediate_size=16)  # square, so that the wrong form has the right shape
    block = model.site_map.blocks[0]
    z = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gate, up, down = (effective_weight(m) for m in (*block.mlp_reads, block.mlp_write))
    found = mlp_jacobian(block, z)
    closed = gated_input_jacobian(z, GatedWeights(gate, up, down), block.activation)
    torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-12)
    by_autodiff = torch.func.vmap(torch.func.jacfwd(lambda t: block.mlp_write(block.hidden(t))))(z)
    torch.testing.assert_close(found, by_autodiff, rtol=1e-10, atol=1e-10)
    wrong = gated_input_jacobian(z, GatedWeights(gate.T, up.T, down), block.activation)
    assert (wrong - found).norm() > 0.1 * found.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_effective_weight_is_output_first(family):
    model = loaded(family)
    for module in model.site_map.blocks[0].linear_maps().values():
        matrix = effective_weight(module)
        x = torch.randn(3, matrix.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(module(x) - module(torch.zeros_like(x)), x @ matrix.T)


@pytest.mark.parametrize("family", LAYOUTS)
def test_block_call_is_the_block_alone(family):
    """With only the top block changed, its input is fixed in the whole model, too."""
    model, ids = loaded(family), tokens()
    update = of_layer(model, update_of(model), 1)
    with true_float64(model.model), forward_differentiable_attention(model.model):
        call = block_calls(model, ids, (1,))[1]
        with with_update(model, update):
            after = block_tensors(model, ids, (1,))[1][SiteKind.RESID_POST]
        before = block_tensors(model, ids, (1,))[1][SiteKind.RESID_POST]
        torch.testing.assert_close(call.output_with(update), after, rtol=1e-12, atol=1e-12)
        whole, alone = block_tensors(model, ids, (1,))[1], call.tensors(model.site_map, 1)
        assert set(whole) == set(alone)
        for kind, value in whole.items():
            torch.testing.assert_close(alone[kind], value, rtol=1e-12, atol=1e-12)
        assert (after - before).norm() > 1e-3 * before.norm()
        small = scaled(update, 1e-6)
        slope = (call.output_with(small) - call.output_with(scaled(small, -1))) / 2e-6
        torch.testing.assert_close(call.shift(update), slope, rtol=1e-5, atol=1e-7)
