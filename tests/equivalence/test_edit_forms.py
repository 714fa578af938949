"""Edit families: shapes, counts, formulas, zero edits, and the names that are refused."""

import pytest
import torch

from steerscope.equivalence.edit_forms import EDIT_FORMS, EditForm, edit_form
from steerscope.errors import InputError

READ, WRITE, RANK = 5, 4, 3


def draw(found: EditForm, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = found.init_shapes(READ, WRITE, RANK if found.has_rank else None)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def read(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, READ, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", EDIT_FORMS)
def test_every_family_keeps_what_it_says_of_itself(name):
    found = edit_form(name)
    parameters, h = draw(found), read()
    delta = found.delta(parameters, h)
    assert found.name == name
    assert delta.shape == (2, 6, WRITE)
    assert delta.abs().min() > 0
    rank = RANK if found.has_rank else None
    assert found.num_parameters(READ, WRITE, rank) == sum(p.numel() for p in parameters.values())

    every_zero = {n: torch.zeros_like(p) for n, p in parameters.items()}
    assert torch.count_nonzero(found.delta(every_zero, h)) == 0
    start = {n: torch.zeros_like(p) if n in found.zero_at else p for n, p in parameters.items()}
    assert torch.count_nonzero(found.delta(start, h)) == 0
    # ... and no fewer parameters would do
    for kept in found.zero_at:
        partly = {n: parameters[n] if n == kept else p for n, p in start.items()}
        assert torch.count_nonzero(found.delta(partly, h)) > 0

    twice = found.delta({n: 2 * p for n, p in parameters.items()}, h)
    assert torch.allclose(twice, 2 * delta, rtol=1e-12, atol=0) is found.is_linear_in_parameters


def test_formulas_token_by_token():
    h = read()
    v, linear, low = draw(edit_form("vector")), draw(edit_form("linear")), draw(edit_form("low_rank"))
    for b in range(2):
        for t in range(6):
            found = edit_form("vector").delta(v, h)[b, t]
            assert torch.equal(found, v["v"])
            found = edit_form("linear").delta(linear, h)[b, t]
            torch.testing.assert_close(found, linear["A"] @ h[b, t], rtol=1e-12, atol=1e-13)
            found = edit_form("low_rank").delta(low, h)[b, t]
            torch.testing.assert_close(found, low["U"] @ (low["D"] @ h[b, t]), rtol=1e-12, atol=1e-13)


def test_low_rank_is_linear_with_a_product_matrix():
    low, h = draw(edit_form("low_rank")), read()
    product = {"A": low["U"] @ low["D"]}
    torch.testing.assert_close(
        edit_form("low_rank").delta(low, h), edit_form("linear").delta(product, h), rtol=1e-12, atol=1e-13
    )
    assert torch.linalg.matrix_rank(product["A"]) == RANK


@pytest.mark.parametrize("name", EDIT_FORMS)
def test_derivative_at_zero_is_the_tangent_feature(name):
    """d(sum of g * delta) at the zero edit: sum g, sum g h^T, and sum g (D h)^T for a drawn D."""
    found, h = edit_form(name), read()
    g = torch.randn(2, 6, WRITE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = draw(found)
    start = {n: torch.zeros_like(p) if n in found.zero_at else p for n, p in parameters.items()}
    for p in start.values():
        p.requires_grad_()
    (g * found.delta(start, h)).sum().backward()
    expected = {
        "vector": lambda: {"v": g.sum((0, 1))},
        "linear": lambda: {"A": torch.einsum("btw,btr->wr", g, h)},
        "low_rank": lambda: {
            "U": torch.einsum("btw,btr,kr->wk", g, h, start["D"]),
            "D": torch.zeros(RANK, READ, dtype=torch.float64),
        },
    }[name]()
    for n, value in expected.items():
        torch.testing.assert_close(start[n].grad, value, rtol=1e-12, atol=1e-13)


def test_batches_of_parameters_with_vmap():
    found, h = edit_form("low_rank"), read()
    many = [draw(found, seed) for seed in range(3)]
    stacked = {n: torch.stack([p[n] for p in many]) for n in many[0]}
    together = torch.func.vmap(found.delta, in_dims=(0, None))(stacked, h)
    for one, parameters in zip(together, many, strict=True):
        torch.testing.assert_close(one, found.delta(parameters, h), rtol=1e-12, atol=1e-13)


def test_parameter_counts_by_hand():
    assert edit_form("vector").num_parameters(16, 16) == 16
    assert edit_form("linear").num_parameters(16, 16) == 256
    assert edit_form("low_rank").num_parameters(576, 576, 8) == 2 * 8 * 576


def test_unknown_family_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match=r"unknown edit form 'lowrank'\. Did you mean 'low_rank'\?"):
        edit_form("lowrank")


def test_ranks_and_sizes_that_make_no_sense():
    with pytest.raises(InputError, match="needs a rank"):
        edit_form("low_rank").init_shapes(4, 4)
    with pytest.raises(InputError, match=r"has no rank; got rank=2"):
        edit_form("vector").init_shapes(4, 4, rank=2)
    with pytest.raises(InputError, match="got rank size 0"):
        edit_form("low_rank").init_shapes(4, 4, rank=0)
    with pytest.raises(InputError, match="got read size -1"):
        edit_form("linear").num_parameters(-1, 4)


@pytest.mark.parametrize(
    ("name", "shapes", "complaint"),
    [
        ("vector", {"w": (4,)}, r"has parameters \['v'\], got \['w'\]"),
        ("vector", {"v": (4,), "bias": (4,)}, "has parameters"),
        ("vector", {"v": (6, 4)}, r"shape \(6, 4\); expected \(write\)"),  # would broadcast over tokens
        ("linear", {"A": (4, 6)}, r"expected \(write, read\) where read = 5"),
        ("linear", {"A": (4, 1)}, r"expected \(write, read\) where read = 5"),
        ("low_rank", {"U": (4, 3), "D": (2, 5)}, r"expected \(rank, read\)"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(name, shapes, complaint):
    parameters = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}
    with pytest.raises(InputError, match=complaint):
        edit_form(name).delta(parameters, read())
