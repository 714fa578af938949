"""The radius of the first-order map, and remainder slopes, against cases with a known answer."""

from __future__ import annotations

import math

import pytest
import torch

from steerscope import InputError, true_float64
from steerscope.analysis.theory import slopes
from steerscope.analysis.theory.block_call import BlockCall
from steerscope.analysis.theory.common import of_layer, random_like, relative_size, scaled
from steerscope.analysis.theory.radius import SIZES, THRESHOLD, crossing, first_order_radius
from steerscope.analysis.theory.slopes import block_slopes, remainder_slopes, slope_at
from steerscope.models.changed_weights import with_update
from tests.analysis.theory.cases import assert_same_bits, bits, loaded, tokens, update_of


def logits(model, ids):
    with torch.no_grad():
        return model.model(input_ids=ids).logits


def test_crossing_of_a_known_error():
    sizes = (1e-3, 1e-2, 1e-1, 1.0)
    # error = 4 * size: it reaches sqrt(0.1) at size sqrt(0.1) / 4
    parts = [1 - (4 * size) ** 2 for size in sizes]
    radius, bound = crossing(sizes, parts, 0.9)
    assert radius == pytest.approx(math.sqrt(0.1) / 4)
    assert bound == ""
    assert crossing(sizes, [1, 1, 1, 1], 0.9) == (1.0, "above")
    assert crossing(sizes, [0.5, 1, 1, 1], 0.9) == (1e-3, "below")
    assert crossing(sizes, [float("nan")] * 4, 0.9) == (1e-3, "below")


def test_map_that_is_linear_has_no_end():
    model = loaded()
    update = update_of(model, only="layers.1.mlp.down_proj")
    before = bits(model)
    with true_float64(model.model):
        (found,) = first_order_radius(model, update, tokens(), ["1.resid_post"])
    assert (found.radius, found.bound) == (SIZES[-1], "above")
    assert min(found.explained) > 1 - 1e-12
    assert_same_bits(model, before)


def test_radius_against_bisection_with_a_finite_difference():
    model, ids = loaded(), tokens()
    update = update_of(model)
    with true_float64(model.model):
        (found,) = first_order_radius(model, update, ids, ["logits"], name="mine", scope="all", skip=0)
        unit = scaled(update, 1 / relative_size(model, update))
        plain = logits(model, ids)

        def shift(size: float) -> torch.Tensor:
            with with_update(model, scaled(unit, size)):
                return logits(model, ids) - plain

        slope = (shift(1e-6) - shift(-1e-6)) / 2e-6
        low, high = 1e-4, 0.5
        for _ in range(40):
            middle = (low * high) ** 0.5
            moved = shift(middle)
            errors = [
                float((m - middle * s).norm() / m.norm())
                for m, s in zip(moved.flatten(0, 1), slope.flatten(0, 1), strict=True)
            ]
            part = 1 - sorted(errors)[len(errors) // 2] ** 2  # the lower median of the explained parts
            low, high = (middle, high) if part >= THRESHOLD else (low, middle)
    assert found.bound == ""
    assert (found.update, found.scope, found.at) == ("mine", "all", "logits")
    # The grid has two sizes per power of ten; the error is not quite a power of the size between them.
    assert found.radius == pytest.approx(low, rel=0.15)


def test_the_first_position_is_left_out():
    model, ids = loaded(), tokens()
    with true_float64(model.model):
        one, both = (first_order_radius(model, update_of(model), ids, ["logits"], skip=skip)[0] for skip in (1, 0))
        rest = first_order_radius(model, update_of(model), ids, ["logits"], skip=5)[0]
    assert len({one.radius, both.radius, rest.radius}) == 3


def test_only_the_direction_matters():
    model, ids = loaded(), tokens()
    update = update_of(model)
    with true_float64(model.model):
        (first,) = first_order_radius(model, update, ids, ["logits"])
        (second,) = first_order_radius(model, scaled(update, 7), ids, ["logits"])
        (other,) = first_order_radius(model, random_like(update, 5), ids, ["logits"])
    assert first.radius == pytest.approx(second.radius)
    assert first.radius != pytest.approx(other.radius, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": (1e-2,)}, "two positive"),
        ({"sizes": (1.0, 0.1)}, "larger"),
        ({"threshold": 1.0}, "fraction"),
    ],
)
def test_bad_arguments(options, words):
    model = loaded()
    with pytest.raises(InputError, match=words):
        first_order_radius(model, update_of(model), tokens(), ["logits"], **options)


def test_slope_is_two_and_a_wrong_prediction_is_not(monkeypatch):
    model, ids = loaded(), tokens(rows=2)
    update = update_of(model)
    places = ["0.resid_post", "1.resid_post", "logits"]
    with true_float64(model.model):
        found = remainder_slopes(model, update, ids, places)
        right = slopes.first_order_shift
        monkeypatch.setattr(slopes, "first_order_shift", lambda *a: {k: 1.01 * v for k, v in right(*a).items()})
        wrong = remainder_slopes(model, update, ids, places)
    assert [one.at for one in found] == places
    assert all(one.within for one in found), found
    assert all(one.small_within and one.small_slope == pytest.approx(2, abs=0.01) for one in found), found
    assert all(len(one.local) == len(one.sizes) - 1 for one in found)
    assert not any(one.within or one.small_within for one in wrong)
    assert all(one.local[-1] == pytest.approx(1, abs=0.05) for one in wrong)


def test_slopes_of_single_blocks_hold_the_input_fixed(monkeypatch):
    model, ids = loaded(), tokens(rows=2)
    updates = {"trained": update_of(model), "random 0": update_of(model, seed=9)}
    with true_float64(model.model):
        found = block_slopes(model, updates, ids, (0, 1))
        assert [(one.at, one.update) for one in found] == [
            (f"{layer}.resid_post", name) for layer in (0, 1) for name in updates
        ]
        assert all(one.within and one.within_up_to == 1e-2 for one in found), found
        # The first block has nothing below it: there, the whole model with its update alone is the block alone.
        mine = of_layer(model, updates["trained"], 0)
        (whole,) = remainder_slopes(model, mine, ids, ["0.resid_post"])
        assert found[0].relative == pytest.approx(whole.relative, rel=1e-4)
        right = BlockCall.shift
        monkeypatch.setattr(BlockCall, "shift", lambda self, change: 1.01 * right(self, change))
        wrong = block_slopes(model, updates, ids, (1,))
    assert not any(one.within for one in wrong)


def test_where_a_slope_is_two_is_said():
    sizes = (1e-2, 1e-3, 1e-4, 1e-5)
    line = torch.ones(3, dtype=torch.float64)
    # Second order, but for the largest size, where the remainder is cut to a hundredth.
    bent = slope_at("x", lambda t: t * line + t**2 * (0.01 if t == 1e-2 else 1) * line, line, sizes)
    assert not bent.within
    assert bent.within_up_to == 1e-3
    first = slope_at("x", lambda t: 1.5 * t * line, line, sizes)
    assert first.within_up_to is None
