"""Features as whole numbers of eight bits, and products in few digits."""

from __future__ import annotations

import math

import pytest
import torch

from steerscope.analysis.capture.rounded import Rounded
from steerscope.equivalence import products
from steerscope.equivalence.products import integer_products, rough_factor, rough_product

CPU = torch.device("cpu")


def features(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-6, 4, 12)[:, None]  # every row in a unit of its own
    return torch.randn(12, 2048, generator=generator) * scales


def rounded(feature: torch.Tensor) -> Rounded:
    room = Rounded.room(len(feature), 2, feature.shape[1], CPU)
    order = torch.randperm(len(feature), generator=torch.Generator().manual_seed(1))
    for slot in range(2):
        room.put(order, slot, feature[order])
    return room


def test_rounding_moves_inner_products_by_less_than_a_thousandth():
    feature = features()
    kept = rounded(feature)[torch.arange(12), 1]
    lengths = feature.norm(dim=1)
    found, expected = kept.gram() / lengths / lengths[:, None], (feature @ feature.T) / lengths / lengths[:, None]
    assert 0 < (found - expected).abs().max() < 1e-3
    assert (kept.widened() - feature).abs().amax(1).le(feature.abs().amax(1) / 253).all()


def test_zeros_stay_zero_and_what_is_not_finite_shows():
    feature = features()[:3]
    feature[0] = 0
    feature[1, 5] = math.inf
    feature[2, 7] = math.nan
    diagonal = rounded(feature)[torch.arange(3), 0].gram().diagonal()
    assert diagonal[0] == 0
    assert not diagonal[1:].isfinite().any()


def test_parts_and_rows_are_those_of_the_feature():
    kept, feature = rounded(features()), features()
    half = kept.narrowed(slice(4, None), 8).widened()[:, 0]
    assert torch.equal(half, kept.widened()[:, 0, 1024:])
    assert torch.equal(Rounded.cat([kept[:5], kept[5:]]).widened(), kept.widened())
    assert kept.numbers.shape == (12, 2, 2048)
    assert torch.equal(kept[3, 0].widened(), kept.widened()[3, 0])
    assert feature.shape == half.shape[:1] + (2048,)


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def multiplies(request, monkeypatch):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: request.param)
    return request.param


def test_products_of_whole_numbers_are_exact(multiplies):
    rows = torch.randint(-127, 128, (130, 40), dtype=torch.int8)
    assert torch.equal(integer_products(rows).double(), rows.double() @ rows.double().T)
    assert integer_products(rows[:, :0]).eq(0).all()


def test_a_rough_product_is_the_product_up_to_its_digits(multiplies):
    left, right = torch.randn(3, 5, 700), torch.randn(700, 16)
    found = rough_product(left, rough_factor(right, torch.float32), torch.float32)
    exact = left.double() @ right.double()
    error = float((found - exact).norm() / exact.norm())
    assert found.dtype == torch.float32
    assert (1e-4 < error < 5e-3) if multiplies else error < 1e-6
    wide = rough_product(left.double(), right, torch.float64)
    assert torch.equal(wide, left.double() @ right.double())
