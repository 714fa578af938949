"""Spectra of oracle shifts: known rank, low rank that is not linear, and another way to the reduced-rank map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steerscope import InputError
from steerscope.analysis.theory import oracle_spectra as spectra
from steerscope.analysis.theory.oracle_spectra import oracle_spectra, spectrum_of
from tests.analysis.theory.cases import assert_same_bits, bits, loaded, normal, tokens, update_of


def test_linear_shift_of_rank_three():
    read = normal(4000, 12, seed=0) @ normal(12, 12, seed=1)
    shift = read @ normal(12, 3, seed=2) @ normal(3, 10, seed=3) + normal(10, seed=4)
    found = spectrum_of(0, read, shift, 2000, 3000)
    by_rank = dict(zip(found.ranks, found.held_out, strict=True))
    assert found.rank_99 <= 3
    assert by_rank[4] > 0.999
    assert by_rank[2] < 0.99
    assert found.cumulative[found.ranks.index(4)] == pytest.approx(1)
    assert 0 < found.mean_share < 1


def test_low_rank_is_not_linear():
    """P27: one direction holds everything, and no linear map predicts it."""
    read = normal(20000, 10, seed=0)
    v, u = torch.nn.functional.normalize(normal(10, seed=1), dim=0), normal(10, seed=2)
    found = spectrum_of(0, read, ((read @ v).square() - 1)[:, None] * u, 10000, 15000)
    assert found.rank_99 == 1
    assert found.participation == pytest.approx(1)
    assert abs(found.held_out[-1]) < 0.02


def test_reduced_rank_map_against_singular_vectors_of_the_fit(monkeypatch):
    monkeypatch.setattr(spectra, "RIDGES", (1e-12,))
    read = normal(300, 8, seed=0)
    shift = read @ normal(8, 6, seed=1) + 2 * normal(300, 6, seed=2)
    found = spectrum_of(0, read, shift, 200, 250)
    x, y = (part[:200].numpy() for part in (read, shift))
    xc, yc = x - x.mean(0), y - y.mean(0)
    full = np.linalg.lstsq(xc, yc, rcond=None)[0]
    right = np.linalg.svd(xc @ full)[2]
    for rank, fitted, held_out in zip(found.ranks, found.fitted, found.held_out, strict=True):
        map_ = full @ right[:rank].T @ right[:rank]
        assert fitted == pytest.approx(1 - ((yc - xc @ map_) ** 2).sum() / (yc**2).sum(), abs=1e-8)
        test = shift[250:].numpy() - y.mean(0)
        left = test - (read[250:].numpy() - x.mean(0)) @ map_
        assert held_out == pytest.approx(1 - (left**2).sum() / (test**2).sum(), abs=1e-8)
    assert list(found.fitted) == sorted(found.fitted)  # more rank never fits worse


def test_on_a_model():
    model, ids = loaded(), tokens(rows=12)
    before = bits(model)
    found = oracle_spectra(model, update_of(model), ids, (0, 1), batch_size=5)
    assert [one.layer for one in found] == [0, 1]
    whole = oracle_spectra(model, update_of(model), ids, (0, 1), batch_size=12)
    for one, other in zip(found, whole, strict=True):
        assert one.held_out == pytest.approx(other.held_out, abs=1e-6)
        assert one.cumulative == pytest.approx(other.cumulative, abs=1e-6)
    assert all(0 < one.relative_norm < 1 and one.ranks[-1] == 16 for one in found)
    assert all(0 <= one.left_out < 0.5 for one in found)
    assert_same_bits(model, before)
    with pytest.raises(InputError, match="at least 8"):
        oracle_spectra(model, update_of(model), ids[:7], (0,))
