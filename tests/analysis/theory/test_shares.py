"""Parts of the stream, modulation and strength curves against sums done by hand."""

from __future__ import annotations

import pytest
import torch

from steerscope import edited, reading, true_float64
from steerscope.analysis.theory.common import Rows, block_tensors, of_layer
from steerscope.analysis.theory.modulation import (
    activation_minimum,
    factors,
    mean_kl,
    modulation,
    strength_curves,
)
from steerscope.analysis.theory.stream_shares import stream_shares
from steerscope.models.changed_weights import with_update
from steerscope.sites import Site, SiteKind
from tests.analysis.theory.cases import assert_same_bits, bits, loaded, tokens, update_of
from tests.tiny import LAYOUTS


@pytest.mark.parametrize("family", LAYOUTS)
def test_shares_of_one_token(family):
    model, ids = loaded(family), tokens(rows=1, length=2)
    with true_float64(model.model):
        found = stream_shares(model, ids, (0, 1))
        tensors = block_tensors(model, ids, (0, 1))
    for one in found:
        h, attn, mlp, out = (
            tensors[one.layer][kind][0, 1]
            for kind in (SiteKind.RESID_PRE, SiteKind.ATTN_OUT, SiteKind.MLP_OUT, SiteKind.RESID_POST)
        )
        torch.testing.assert_close(h + attn + mlp, out)
        # One token: medians are its values, and the three shares sum to one.
        assert one.stream_share + one.attn_share + one.mlp_share == pytest.approx(1)
        assert one.stream_share == pytest.approx(float(h @ out / (out @ out)))
        assert one.published == pytest.approx(float(mlp.norm() / (mlp.norm() + attn.norm())))
        assert one.norm_share < one.published  # the published ratio leaves the stream out
        assert one.norm_share == pytest.approx(float(mlp.norm() / (mlp.norm() + attn.norm() + h.norm())))
        assert (one.stream_norm, one.attn_norm) == pytest.approx((float(h.norm()), float(attn.norm())))


def test_first_position_is_left_out():
    model, ids = loaded(), tokens(rows=1, length=2)
    with true_float64(model.model):
        one, both = (stream_shares(model, ids, (1,), skip=skip) for skip in (1, 0))
    assert one != both


@pytest.mark.parametrize(("family", "low"), [("llama", -0.27846), ("gemma2", -0.17004)])
def test_minimum_of_the_activation(family, low):
    assert activation_minimum(loaded(family).site_map.blocks[0]) == pytest.approx(low, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_factors_multiply_what_they_should(family):
    """The hidden layer moves by slope times the gate's change plus phi times the up projection's change."""
    model = loaded(family)
    block = model.site_map.blocks[0]
    z = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope, phi = factors(block, z)
    along = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        moved = (block.hidden(z + 1e-6 * along) - block.hidden(z - 1e-6 * along)) / 2e-6
        change = [read(z + along) - read(z) for read in block.mlp_reads]
    if len(change) == 1 and block.description.gated:
        change = list(change[0].chunk(2, dim=-1))
    right = slope * change[0] + (phi * change[1] if len(change) == 2 else 0)
    torch.testing.assert_close(right, moved, rtol=1e-6, atol=1e-8)
    if len(change) == 2:
        swapped = phi * change[0] + slope * change[1]
        assert (swapped - moved).norm() > 0.1 * moved.norm()


def test_modulation_quantiles_are_ordered_and_bounded():
    for one in modulation(loaded(), tokens(rows=8), (0, 1)):
        assert list(one.slope) == sorted(one.slope)
        assert list(one.phi) == sorted(one.phi)
        assert one.phi[0] >= one.minimum
        assert one.slope[0] < one.minimum  # the other factor has no such bound
        assert 0 <= one.near_minimum_phi <= 1


def test_kl_by_hand():
    p, q = torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])
    by_hand = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    assert mean_kl(p.log()[None], q.log()[None] + 3) == pytest.approx(float(by_hand), rel=1e-6)
    assert mean_kl(p.log(), p.log()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("family", LAYOUTS)
def test_blocks_below_an_edit_need_not_run(family):
    """Every strength, one after the other and through the whole model, gives the same curve."""
    model, ids, site = loaded(family), tokens(), Site(1, SiteKind.ATTN_OUT)
    update = update_of(model, 0.3)
    with true_float64(model.model), torch.no_grad():
        (curve,) = strength_curves(model, update, Rows(ids, slice(2, 5)), (1,), kinds=(SiteKind.ATTN_OUT,))
        with reading(model.site_map, [site]) as before:
            base = model.model(input_ids=ids).logits[:, 2:5]
        with with_update(model, update), reading(model.site_map, [site]) as after:
            tuned = model.model(input_ids=ids).logits[:, 2:5]
        for alpha, change in zip(curve.alphas, curve.delta_kl, strict=True):
            oracle = alpha * (after[site] - before[site])
            with edited(model.model, model.site_map, {site: lambda _, added=oracle: added}):
                steered = model.model(input_ids=ids).logits[:, 2:5]
            assert change == pytest.approx(mean_kl(steered, tuned) - mean_kl(base, tuned), rel=1e-9, abs=1e-12)


def test_strength_curve_of_the_last_mlp_ends_at_the_fine_tuned_model():
    model, ids = loaded(), tokens()
    update = {n: c for n, c in of_layer(model, update_of(model, 0.3), 1).items() if "mlp" in n}
    before = bits(model)
    rows = Rows(ids, slice(3, 6))
    with true_float64(model.model):
        mlp_out, attn_out = strength_curves(
            model, update, rows, (1,), kinds=(SiteKind.MLP_OUT, SiteKind.ATTN_OUT), alphas=(-1.0, 1e-8, 0.5, 1.0)
        )
        with torch.no_grad():
            base = model.model(input_ids=ids).logits[:, 3:6]
            with with_update(model, update):
                tuned = model.model(input_ids=ids).logits[:, 3:6]
    assert_same_bits(model, before)
    assert mlp_out.base_kl == pytest.approx(mean_kl(base, tuned))
    assert mlp_out.base_kl > 1e-4
    # The whole change is in this site: at strength one nothing is left, at the wrong sign it is worse than nothing.
    assert mlp_out.delta_kl[3] == pytest.approx(-mlp_out.base_kl, rel=1e-9)
    assert mlp_out.delta_kl[1] == pytest.approx(0, abs=1e-7)
    assert mlp_out.delta_kl[0] > 0
    assert mlp_out.delta_kl[3] < mlp_out.delta_kl[2] < 0
    # The attention is not changed at all: its oracle is zero and does nothing at any strength.
    assert max(map(abs, attn_out.delta_kl)) < 1e-12
