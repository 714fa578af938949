"""Shapes that docstrings promise, ``(batch token channel)``, hold when functions run: a name stands for one size.

The shapes are read from the docstrings themselves, so that neither can change without the other.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from steerscope.analysis.theory.common import flat
from steerscope.equivalence import closed_forms
from steerscope.equivalence.closed_forms import GatedWeights, PlainWeights
from steerscope.equivalence.oracles import reduced_rank_map
from steerscope.equivalence.reach import RidgeReads, conditional_second_moment
from steerscope.models.load import wrap_model
from steerscope.sites import Site, SiteKind
from tests.byte_models import byte_model, byte_tokenizer
from tests.equivalence import reference

jaxtyping = pytest.importorskip("jaxtyping", reason="installed with the extra dev")
beartype = pytest.importorskip("beartype", reason="installed with the extra dev")

SHAPE = re.compile(r"``\(([^`()]+)\)``")
ARGUMENT = re.compile(r"\n    (\w+): (.*(?:\n        .*)*)")


def promised(function: Callable[..., Any]) -> dict[str, str]:
    """Return the shapes that a docstring gives its arguments and what it returns, as jaxtyping writes them."""
    before, _, after = (inspect.getdoc(function) or "").partition("\nReturns:\n")
    entries = {match[1]: match[2] for match in ARGUMENT.finditer(before.partition("\nArgs:")[2])}
    entries["return"] = after.partition("\nRaises:")[0].partition("\nCost:")[0]
    found = {name: SHAPE.search(text) for name, text in entries.items()}
    # Axes before the last one are the same everywhere in a function.
    return {name: shape[1].replace(",", " ").replace("...", "*lead") for name, shape in found.items() if shape}


def checked(function: Any, *, only: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Return a function that refuses tensors of other shapes than its docstring says."""
    shapes = {name: shape for name, shape in promised(function).items() if not only or name in only}
    assert "return" in shapes, f"{function.__name__} promises no shape"
    inner = getattr(function, "__wrapped__", function)
    copy = FunctionType(inner.__code__, inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__)
    copy.__kwdefaults__ = inner.__kwdefaults__
    copy.__annotations__ = {name: jaxtyping.Shaped[Tensor, shape] | None for name, shape in shapes.items()}
    return jaxtyping.jaxtyped(copy, typechecker=beartype.beartype)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


GATED = GatedWeights(draw(7, 5), draw(7, 5), draw(5, 7))
PLAIN = PlainWeights(draw(7, 5), draw(7), draw(5, 7), draw(5))
Z, PHI = draw(2, 3, 5), torch.nn.functional.silu
FORMULAS = {
    "gated_mlp": lambda f: f(Z, GATED, PHI),
    "gated_weight_shift": lambda f: f(Z, GATED, GATED, PHI),
    "gated_weight_second_order": lambda f: f(Z, GATED, GATED, PHI),
    "gated_input_shift": lambda f: f(Z, Z, GATED, PHI),
    "gated_input_second_order": lambda f: f(Z, Z, GATED, PHI),
    "gated_input_jacobian": lambda f: f(Z, GATED, PHI),
    "plain_mlp": lambda f: f(Z, PLAIN, PHI),
    "plain_weight_shift": lambda f: f(Z, PLAIN, PLAIN, PHI),
    "plain_weight_second_order": lambda f: f(Z, PLAIN, PLAIN, PHI),
    "plain_input_shift": lambda f: f(Z, Z, PLAIN, PHI),
    "plain_input_second_order": lambda f: f(Z, Z, PLAIN, PHI),
    "plain_input_jacobian": lambda f: f(Z, PLAIN, PHI),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_closed_forms(name):
    assert set(promised(getattr(closed_forms, name))) >= {"z", "return"}
    FORMULAS[name](checked(getattr(closed_forms, name)))


def test_least_squares():
    states, targets, others = draw(20, 5), draw(20, 3), draw(4, 5)
    checked(reduced_rank_map)(states, targets, 2)
    checked(conditional_second_moment)(states, targets)
    checked(RidgeReads.prediction)(RidgeReads(states), targets, others, 0.1)


@torch.no_grad()
def test_runs_of_a_model():
    loaded = wrap_model(byte_model(), byte_tokenizer())
    ids, mask, place = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.long), Site(1, SiteKind.MLP_OUT)
    checked(reference.site_value)(loaded.model, ids, mask, None, place)
    only = ("input_ids", "attention_mask", "position_ids", "return")  # the edit is a function
    checked(reference.edited_logits, only=only)(loaded.model, ids, mask, None, place, lambda x: 0.1 * x)
    checked(flat)(draw(2, 3, 5))


def test_a_wrong_shape_is_found():
    def turned(z: Tensor) -> Tensor:
        """Return it.

        Args:
            z: What comes, ``(..., d)``.

        Returns:
            The same, ``(..., d)``.
        """
        return z.mT

    checked(turned)(draw(2, 4, 4))
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        checked(turned)(draw(2, 3, 4))
    with pytest.raises(AssertionError, match="promises no shape"):
        checked(draw)
