"""Is the first-order map of a real model first-order? Remainder slopes in float64 over five powers of ten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from steerscope.analysis.theory.common import Update, relative_size, scaled
from steerscope.equivalence.remainder import fit_remainder
from steerscope.equivalence.shifts import first_order_shift, measured_shift
from steerscope.models.load import LoadedModel

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


def remainder_slopes(
    loaded: LoadedModel, update: Update, ids: Tensor, at: Sequence[str], sizes: Sequence[float] = SIZES
) -> tuple[Slope, ...]:
    """Measure remainder slopes of one update at several places.

    Args:
        loaded: The model in float64; call inside :func:`steerscope.true_float64`.
        update: Change per parameter name; only its direction matters.
        ids: ``batch token``, without padding.
        at: Sites, or ``"logits"``.
        sizes: Relative sizes.

    Cost: a tangent pass and two forward passes per size.
    """
    unit = scaled(update, 1 / relative_size(loaded, update))
    inputs = {"input_ids": ids}
    predicted = first_order_shift(loaded, unit, inputs, at)
    measured = {size: measured_shift(loaded, unit, inputs, at, scale=size) for size in sizes}
    found = []
    for place in at:
        fit = fit_remainder(lambda size, place=place: measured[size][place], predicted[place], sizes)  # type: ignore[misc]
        left = [relative * size for relative, size in zip(fit.relative, sizes, strict=True)]
        local = np.diff(np.log(np.maximum(left, 1e-300))) / np.diff(np.log(sizes))
        small = [index for index, part in enumerate(fit.relative) if part < SMALL]
        slope = None
        if len(small) > 1:
            x, y = (np.log(np.maximum(np.array(values)[small], 1e-300)) for values in (sizes, left))
            slope = float(np.polyfit(x, y, 1)[0])
        found.append(
            Slope(
                at=place,
                sizes=tuple(sizes),
                relative=fit.relative,
                slope=fit.slope,
                local=tuple(map(float, local)),
                within=abs(fit.slope - EXPECTED) <= TOLERANCE,
                small_slope=slope,
                num_small=len(small),
                small_within=slope is not None and abs(slope - EXPECTED) <= TOLERANCE,
            )
        )
    return tuple(found)
