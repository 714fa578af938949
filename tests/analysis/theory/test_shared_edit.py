"""Least squares through one matrix per token, against the same done densely."""

from __future__ import annotations

import pytest
import torch

from steerscope.analysis.theory import shared_edit as module
from steerscope.analysis.theory.shared_edit import Form, shared_edits
from tests.analysis.theory.cases import normal


def make_exact(monkeypatch):
    monkeypatch.setattr(module, "ITERATIONS", 400)
    monkeypatch.setattr(module, "_CONVERGED", 1e-12)


@pytest.fixture
def exact(monkeypatch):
    make_exact(monkeypatch)


def dense_best(maps, right, read, target):
    """One row per (token, channel), one column per entry of A."""
    whole = maps @ (torch.eye(maps.shape[-1], dtype=maps.dtype) if right is None else right)
    dense = torch.einsum("tow,tr->towr", whole, read).reshape(len(read) * maps.shape[1], -1)
    goal = target.permute(0, 2, 1).reshape(len(dense), -1)
    best = dense @ torch.linalg.lstsq(dense, goal, driver="gelsd").solution
    return best.reshape(len(read), maps.shape[1], -1).permute(0, 2, 1)


def test_forms_fitted_together_against_dense_least_squares(exact):
    maps, target = normal(40, 5, 5, seed=0), normal(40, 2, 5, seed=2)
    forms = [
        Form(normal(40, 3, seed=1)),
        Form(normal(40, 2, seed=3), right=normal(5, 4, seed=4)),
        Form(normal(40, 2, seed=3), right=normal(5, 8, seed=5)),  # wider than the stream
        Form(torch.ones(40, 1, dtype=torch.float64)),
    ]
    found = shared_edits(maps, forms, target)(maps, [form.read for form in forms])
    for one, form in zip(found, forms, strict=True):
        torch.testing.assert_close(one, dense_best(maps, form.right, form.read, target), rtol=1e-5, atol=1e-5)
        (alone,) = shared_edits(maps, [form], target)(maps, [form.read])
        torch.testing.assert_close(one, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [None, 3, 8])
def test_without_maps_against_ordinary_regression(exact, width):
    read, target = normal(40, 3, seed=1), normal(40, 2, 5, seed=2)
    right = None if width is None else normal(5, width, seed=3)
    eye = torch.eye(5, dtype=torch.float64).expand(40, 5, 5)
    (found,) = shared_edits(None, [Form(read, right)], target)(None, [read])
    torch.testing.assert_close(found, dense_best(eye, right, read, target), rtol=1e-5, atol=1e-5)


def test_one_step_is_enough_without_maps(monkeypatch):
    read, target = normal(40, 3, seed=1), normal(40, 2, 5, seed=2)
    several = shared_edits(None, [Form(read, normal(5, 8, seed=3), 0.01)], target)(None, [read])[0]
    monkeypatch.setattr(module, "ITERATIONS", 1)
    once = shared_edits(None, [Form(read, normal(5, 8, seed=3), 0.01)], target)(None, [read])[0]
    torch.testing.assert_close(once, several, rtol=1e-3, atol=1e-3)


def test_a_shared_edit_is_recovered_and_a_token_wise_one_is_not(exact):
    maps, read, a = normal(200, 5, 5, seed=0), normal(200, 4, seed=1), normal(5, 4, seed=2)

    def moved(edit):
        return torch.einsum("tow,tw->to", maps, edit)[:, None]

    shared, free = moved(read @ a.T), moved(normal(200, 5, seed=3))
    (found,) = shared_edits(maps, [Form(read, ridge=1e-8)], torch.cat([shared, free], 1))(maps, [read])
    assert float((found[:, :1] - shared).norm() / shared.norm()) < 1e-4
    assert float((free - found[:, 1:]).norm() / free.norm()) > 0.8


def test_a_target_of_zero_is_left_alone(exact):
    maps, read = normal(20, 5, 5, seed=0).float(), normal(20, 3, seed=1).float()
    target = torch.stack([torch.zeros(20, 5), normal(20, 5, seed=2).float()], dim=1)
    (found,) = shared_edits(maps, [Form(read)], target)(maps, [read])
    assert not found[:, 0].any()
    assert bool(found.isfinite().all())
