"""Kernels kept as triangles are the kernels, and a search in lower triangles finds what it found in whole ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerscope.analysis.scoring.greedy import grow_set
from steerscope.analysis.scoring.joint import LearnableShares
from steerscope.analysis.scoring.kernels import Kernel
from steerscope.analysis.scoring.triangles import PANEL, Triangle, Triangles, mirrored
from steerscope.sites import Site, SiteKind
from tests.analysis.test_scores import case_of


def kernel_of(size: int, seed: int = 0) -> torch.Tensor:
    features = torch.randn(size, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return features @ features.T


@pytest.mark.parametrize("size", [1, PANEL - 1, PANEL, 2 * PANEL + 3])
def test_a_triangle_is_its_matrix(size):
    one, other = kernel_of(size), kernel_of(size, 1)
    first, second = Triangle(one), Triangle(other)
    assert torch.equal(first.whole(), one)
    room = first.empty()
    first.put_lower(room, other)
    assert torch.equal(room.tril(), (one + other).tril())
    total = second.whole()
    first.add_to(total, 3.0)
    assert torch.allclose(mirrored(total), other + 3 * one, rtol=1e-14)
    assert torch.equal(total, total.T)
    assert torch.equal(second.whole(), other)


@pytest.mark.parametrize(
    "ranges",
    [[(0, 5)], [(3, PANEL + 7), (2 * PANEL - 1, 2 * PANEL + 3)], [(PANEL, PANEL + 1), (PANEL + 40, 2 * PANEL)]],
)
def test_part_of_a_triangle_is_part_of_its_matrix(ranges):
    kernel, base = kernel_of(2 * PANEL + 3), kernel_of(2 * PANEL + 3, 1)
    of = [slice(*some) for some in ranges]
    rows = torch.cat([torch.arange(*some) for some in ranges])
    expected, added = kernel[rows][:, rows], base[rows][:, rows]
    triangle = Triangle(kernel)
    assert torch.equal(triangle.whole(of), expected)
    room = torch.full_like(expected, float("nan"))
    triangle.put_lower(room, added, of)
    assert torch.equal(room.tril(), (expected + added).tril())
    (site,) = part = Triangles({Site(0, SiteKind.MLP_OUT): triangle}).part(of)
    assert torch.equal(part[site], expected)


def test_a_triangle_keeps_half_and_no_view():
    kernel = kernel_of(8 * PANEL)
    panels = Triangle(kernel)._panels
    assert sum(panel.untyped_storage().nbytes() for panel in panels) <= 0.6 * kernel.untyped_storage().nbytes()


def test_half_precision_is_what_is_kept_and_not_what_is_computed_in():
    kernel = (kernel_of(2 * PANEL + 3) + 6e4 * torch.eye(2 * PANEL + 3)).float()
    half = Triangle(kernel, torch.float16)
    assert {panel.dtype for panel in half._panels} == {torch.float16}
    room = half.empty()
    half.put_lower(room, half.whole())
    tripled = half.empty()
    half.add_to(tripled, 3.0)
    for found, expected in [(half.whole(), kernel), (mirrored(tripled), 3 * kernel), (room.tril(), 2 * kernel.tril())]:
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_sets_grow_alike_in_triangles():
    case = case_of(num_examples=24)
    whole, halves = {}, Triangles()
    for layer in range(5):
        kernel = kernel_of(len(case.rows.example), layer)
        site = Site(layer, SiteKind.MLP_OUT)
        whole[site] = kernel / kernel.diagonal().mean()
        halves.kept[site] = Triangle(whole[site])
    problem, costs = case.problem(), dict.fromkeys(whole, 1)
    found, expected = (grow_set(k, problem, costs, max_sites=4, budget=None) for k in (halves, whole))
    assert [(step.layer, step.score) for step in found] == [
        (step.layer, pytest.approx(step.score, abs=1e-9)) for step in expected
    ]
    assert len(found) > 1


def test_what_is_above_the_diagonal_of_a_search_is_not_read():
    case = case_of(num_examples=150)
    kept, sites = Triangles(), [Site(layer, SiteKind.MLP_OUT) for layer in range(3)]
    for layer, site in enumerate(sites):
        kept.kept[site] = Triangle(kernel_of(len(case.rows.example), layer))
    shares = LearnableShares(kept, case.problem())
    expected = float(shares.of_set(sites)[0])
    for _ in range(2):
        assert shares.with_each(sites[:-1], sites[-1:]) == [pytest.approx(expected, abs=1e-6)]
        shares._search.room.fill_(float("nan"))


def test_a_kernel_of_zero_stays_zero_at_unit_scale():
    case = case_of()
    nothing = Kernel(torch.zeros(4, 4), torch.zeros(4, 0), torch.zeros(2, 2))
    candidate = replace(case.candidate(case.kernel, 0.0), kernel=nothing)
    assert candidate.unit_kernel.eq(0).all()
    assert (nothing.loss / nothing.unit).eq(0).all()
