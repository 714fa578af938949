"""The map of first-order residuals: least squares done densely, cases with a known answer, and where it must fail."""

from __future__ import annotations

import pytest
import torch

from steerscope import InputError, true_float64
from steerscope.analysis.theory import residual_map as module
from steerscope.analysis.theory.residual_map import check_size, residual_map, token_wise
from tests.analysis.theory.cases import assert_same_bits, bits, loaded, normal, tokens, update_of
from tests.analysis.theory.test_shared_edit import make_exact
from tests.tiny import LAYOUTS


@pytest.fixture
def exact(monkeypatch):
    make_exact(monkeypatch)


def test_token_wise_residual_is_the_distance_to_the_column_space():
    maps = normal(8, 6, 2, seed=0)
    target = normal(8, 1, 6, seed=1)
    (left,), (size,) = token_wise(lambda t: maps[t], normal(8, 6, seed=2), target)
    chosen = range(0, 8, 2)
    by_hand = []
    for t in chosen:
        q = torch.linalg.qr(maps[t])[0]
        rest = target[t, 0] - q @ (q.T @ target[t, 0])
        by_hand.append(float(rest.square().sum() / target[t].square().sum()))
    assert left == pytest.approx(sorted(by_hand)[1], rel=1e-9)  # torch's median of four is the second
    assert size > 0
    (nothing,), _ = token_wise(lambda t: torch.zeros(6, 2, dtype=torch.float64), normal(8, 6, seed=2), target)
    assert nothing == pytest.approx(1)


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_layout_has_its_map(family):
    model, ids = loaded(family), tokens(rows=20)
    before = bits(model)
    shown = []
    with true_float64(model.model):
        cells = residual_map(
            model, update_of(model), ids, (1,), progress=lambda done, total: shown.append((done, total))
        )
    assert_same_bits(model, before)
    kinds = [k for k in model.site_map.description.kinds if k != "resid_pre"]
    weights = list(model.site_map.blocks[1].linear_maps())
    assert [(c.site, c.weight) for c in cells] == [(k, w) for k in kinds for w in weights]
    done = [count for count, _ in shown]
    assert done == sorted(set(done))
    assert shown[-1] == (len(kinds), len(kinds))
    for cell in cells:
        assert 0 <= cell.linear_fitted <= 1.001
        if cell.site in ("mlp_out", "resid_post"):
            assert cell.oracle == 0  # a free edit of the output reaches everything


def test_known_cells(exact, monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 1e-6)
    model, ids = loaded(), tokens(rows=60)
    with true_float64(model.model):
        cells = {(c.site, c.weight): c for c in residual_map(model, update_of(model), ids, (1,))}
    down, out = "mlp.down_proj", "self_attn.o_proj"
    # dW_d m is linear in m, and dW_o heads in the heads: where these are read, nothing is left.
    assert cells["mlp_hidden", down].linear < 0.01
    assert cells["attn_heads", out].linear < 0.01
    assert cells["attn_heads", out].oracle < 1e-12
    # What is linear in the hidden layer (20 channels) is not linear in 16 channels of the stream.
    assert cells["resid_post", down].linear > 0.05
    # A fixed vector is one and the same edit at mlp_out and resid_post, and does less than the linear edit.
    assert cells["mlp_out", down].vector == pytest.approx(cells["resid_post", down].vector, rel=1e-9)
    assert cells["mlp_hidden", down].vector > 0.5


def test_without_a_down_projection_nothing_before_it_helps():
    model, ids = loaded(), tokens(rows=20)
    with torch.no_grad():
        model.site_map.blocks[1].mlp_write.weight.zero_()
    update = update_of(model, only="q_proj") | {
        "model.layers.1.mlp.down_proj.weight": normal(16, 20, seed=4) * 0.1,
    }
    with true_float64(model.model):
        cells = {(c.site, c.weight): c for c in residual_map(model, update, ids, (1,))}
    assert cells["mlp_in", "mlp.down_proj"].oracle == pytest.approx(1)
    assert cells["mlp_in", "mlp.down_proj"].linear == pytest.approx(1)
    # With the MLP's derivative gone, I + A D_N is the identity: attention's output still reaches the stream.
    assert cells["attn_out", "mlp.down_proj"].oracle < 1e-12


def test_refusals(monkeypatch):
    model = loaded()
    with pytest.raises(InputError, match="at least 5"):
        residual_map(model, update_of(model), tokens(rows=4), (1,))
    monkeypatch.setattr(module, "MAX_NUMBERS", 16 * 16 * 10)
    check_size(model, 10)
    with pytest.raises(InputError, match="11 matrices"):
        check_size(model, 11)
