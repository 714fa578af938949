r"""Is the first-order map of a real model first-order? Remainder slopes in float64 over five powers of ten.

Two questions that differ by more than they seem to:

- :func:`block_slopes`: one block at a time, what enters it held fixed, sizes relative to its own weights. This is the
  statement about blocks: its remainder is second order as long as one block's nonlinearities are not left.
- :func:`remainder_slopes`: the whole model up to a place, the weights of all blocks changed at once. Blocks compound,
  so the same relative size is a far larger step there: a size of 0.01 can be outside the first-order radius, and then
  a slope over all sizes is not 2 although the map is right. :attr:`Slope.small_slope` leaves such sizes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from steerscope.analysis.theory.block_call import BlockCall, block_calls
from steerscope.analysis.theory.common import Update, of_layer, relative_size, scaled
from steerscope.equivalence.remainder import fit_remainder
from steerscope.equivalence.shifts import first_order_shift, measured_shifts
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.load import LoadedModel
from steerscope.sites import Site, SiteKind

SIZES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
EXPECTED, TOLERANCE = 2.0, 0.05
SMALL = 0.1


@dataclass(frozen=True)
class Slope:
    """How the remainder at one place falls with the size of the update.

    Attributes:
        at: A site, or ``"logits"``.
        sizes: Relative sizes of the update.
        relative: Norm of (measured minus predicted) over the norm of the prediction, per size.
        slope: Least-squares slope of log(remainder) against log(size).
        local: Slopes between neighbouring sizes, the largest first.
        within: Whether ``slope`` is 2.00 +- 0.05.
        small_slope: The slope over the sizes with a relative remainder below 0.1 alone: an update beyond that is not
            small, and third-order terms bend the line; ``None`` if fewer than two are left.
        num_small: How many sizes these are.
        small_within: Whether ``small_slope`` is 2.00 +- 0.05.
        update: Which update.
        within_up_to: The largest size from which the slope down to the smallest is 2.00 +- 0.05; ``None`` if none is.
    """

    at: str
    sizes: tuple[float, ...]
    relative: tuple[float, ...]
    slope: float
    local: tuple[float, ...]
    within: bool
    small_slope: float | None
    num_small: int
    small_within: bool
    update: str = "trained"
    within_up_to: float | None = None


def remainder_slopes(
    loaded: LoadedModel, update: Update, ids: Tensor, at: Sequence[str], sizes: Sequence[float] = SIZES
) -> tuple[Slope, ...]:
    """Measure remainder slopes of one update of the whole model at several places.

    Args:
        loaded: The model in float64; call inside :func:`steerscope.true_float64`.
        update: Change per parameter name; only its direction matters.
        ids: ``batch token``, without padding.
        at: Sites, or ``"logits"``.
        sizes: Relative sizes.

    Returns:
        One slope per place; 2 where the first-order prediction is right.

    Cost: a tangent pass, a forward pass and one more per size.
    """
    unit = scaled(update, 1 / relative_size(loaded, update))
    inputs = {"input_ids": ids}
    predicted = first_order_shift(loaded, unit, inputs, at)
    measured = dict(zip(sizes, measured_shifts(loaded, unit, inputs, at, sizes), strict=True))
    return tuple(
        slope_at(place, lambda size, place=place: measured[size][place], predicted[place], sizes)  # type: ignore[misc]
        for place in at
    )


def block_slopes(
    loaded: LoadedModel,
    updates: Mapping[str, Update],
    ids: Tensor,
    layers: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Slope, ...]:
    """Measure remainder slopes of single blocks: a block's own weights updated, what enters it held fixed.

    Args:
        loaded: The model in float64; call inside :func:`steerscope.true_float64`.
        updates: Change per parameter name, by the update's name; of each the part of one block is taken, scaled to
            sizes relative to that block's changed weights.
        ids: ``batch token``, without padding.
        layers: Which blocks.
        progress: Called with blocks done and blocks in all.

    Returns:
        One slope per block and update.

    Cost: one forward pass; per block one pass, and per update a tangent pass and a pass per size.
    """
    calls = block_calls(loaded, ids, layers)
    found = []
    for done, layer in enumerate(layers):
        call, at = calls[layer], str(Site(layer, SiteKind.RESID_POST))
        with forward_differentiable_attention(loaded.model):
            base = call.output_with({})
            for name, update in updates.items():
                mine = of_layer(loaded, update, layer)
                if not mine:
                    continue
                unit = scaled(mine, 1 / relative_size(loaded, mine))
                found.append(slope_at(at, partial(_moved, call, unit, base), call.shift(unit), SIZES, name))
        if progress is not None:
            progress(done + 1, len(layers))
    return tuple(found)


def _moved(call: BlockCall, unit: Update, base: Tensor, size: float) -> Tensor:
    return call.output_with(scaled(unit, size)) - base


def slope_at(
    at: str, measured: Callable[[float], Tensor], predicted: Tensor, sizes: Sequence[float], update: str = "trained"
) -> Slope:
    """Compare ``measured(size)`` with ``size * predicted`` at every size, the largest first.

    Args:
        at: Name of the place, for the result.
        measured: The shift at a relative size.
        predicted: The shift per unit of size, to first order.
        sizes: Relative sizes, largest first.
        update: Name of the update, for the result.

    Returns:
        The slope of the logarithm of the remainder in the logarithm of the size, over all sizes and over small
        remainders.
    """
    fit = fit_remainder(measured, predicted, sizes)
    left = [relative * size for relative, size in zip(fit.relative, sizes, strict=True)]
    x, y = np.log(sizes), np.log(np.maximum(left, 1e-300))

    def over(kept: Sequence[int]) -> float:
        return float(np.polyfit(x[list(kept)], y[list(kept)], 1)[0])

    small = [index for index, part in enumerate(fit.relative) if part < SMALL]
    small_slope = over(small) if len(small) > 1 else None
    starts = [i for i in range(len(sizes) - 1) if _is_two(over(range(i, len(sizes))))]
    return Slope(
        at=at,
        sizes=tuple(sizes),
        relative=fit.relative,
        slope=fit.slope,
        local=tuple(map(float, np.diff(y) / np.diff(x))),
        within=_is_two(fit.slope),
        small_slope=small_slope,
        num_small=len(small),
        small_within=small_slope is not None and _is_two(small_slope),
        update=update,
        within_up_to=sizes[starts[0]] if starts else None,
    )


def _is_two(slope: float) -> bool:
    return abs(slope - EXPECTED) <= TOLERANCE
