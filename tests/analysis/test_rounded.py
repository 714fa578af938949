"""Features as whole numbers of eight bits, and products in few digits."""

from __future__ import annotations

import math

import pytest
import torch

from steerscope.analysis.capture.rounded import blocks_of, gram_of, rounded, wide_feature
from steerscope.equivalence import products
from steerscope.equivalence.kernels import gram
from steerscope.equivalence.products import integer_products, rough_factor, rough_product


def features(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-6, 4, 12)[:, None]  # every row in a unit of its own
    return torch.randn(12, 2048, generator=generator) * scales


def test_rounding_moves_inner_products_by_less_than_a_thousandth():
    feature = features()
    kept, lengths = rounded(feature), feature.norm(dim=1)
    found, expected = gram_of(kept) / lengths / lengths[:, None], (feature @ feature.T) / lengths / lengths[:, None]
    assert 0 < (found - expected).abs().max() < 1e-3
    assert (wide_feature(kept) - feature).abs().amax(1).le(feature.abs().amax(1) / 253).all()


def test_zeros_stay_zero_and_what_is_not_finite_shows():
    feature = features()[:3]
    feature[0] = 0
    feature[1, 5] = math.inf
    feature[2, 7] = math.nan
    diagonal = gram_of(rounded(feature)).diagonal()
    assert diagonal[0] == 0
    assert not diagonal[1:].isfinite().any()


def test_parts_and_rows_are_those_of_the_feature():
    kept, wide = rounded(features()), wide_feature(rounded(features()))
    assert torch.equal(wide_feature(blocks_of(kept, slice(4, None), 8)), wide[:, 1024:])
    assert torch.equal(wide_feature(torch.cat([kept[5:], kept[:5]])), torch.cat([wide[5:], wide[:5]]))
    assert torch.equal(wide_feature(kept.reshape(3, 4, -1)[1, 2]), wide[6])


def test_units_of_a_single_row_anywhere():
    feature = features()[:5, :7]
    kept = rounded(feature)  # rows of eleven bytes
    for row, one in zip(kept, feature, strict=True):
        assert torch.allclose(wide_feature(row), one, atol=float(one.abs().max()) / 200)


def test_what_is_not_rounded_stays_as_it_is():
    feature = features().double()
    assert torch.equal(wide_feature(feature), feature)
    assert torch.equal(gram_of(feature), gram(feature))


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def multiplies(request, monkeypatch):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: request.param)
    return request.param


def test_products_of_whole_numbers_are_exact(multiplies):
    rows = torch.randint(-127, 128, (330, 40), dtype=torch.int8)
    ones, units = torch.ones(len(rows)), torch.rand(len(rows)) + 0.5
    expected = rows.double() @ rows.double().T
    assert torch.equal(integer_products(rows, ones).double(), expected)
    scaled = integer_products(rows, units).double()
    assert torch.allclose(scaled, expected * units.double() * units.double()[:, None], rtol=1e-6, atol=0)
    assert torch.equal(scaled, scaled.T)
    assert integer_products(rows[:, :0], ones).eq(0).all()


def test_a_rough_product_is_the_product_up_to_its_digits(multiplies):
    left, right = torch.randn(3, 5, 700), torch.randn(700, 16)
    found = rough_product(left, rough_factor(right, torch.float32), torch.float32)
    exact = left.double() @ right.double()
    error = float((found - exact).norm() / exact.norm())
    assert found.dtype == torch.float32
    assert (1e-4 < error < 5e-3) if multiplies else error < 1e-6
    wide = rough_product(left.double(), right, torch.float64)
    assert torch.equal(wide, left.double() @ right.double())
