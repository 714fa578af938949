"""Is a first-order prediction first-order? The slope of what it leaves over, against the size of the update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from steerscope.equivalence.shifts import LOGITS, first_order_shift, measured_shift
from steerscope.errors import InputError
from steerscope.finite import require_finite
from steerscope.models.site_map import HasSites
from steerscope.sites import Site

DEFAULT_SCALES = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Remainder:
    """What a linear prediction leaves over, per scale of the update.

    Attributes:
        scales: Factors on the update.
        relative: Norm of (measured minus predicted) over the norm of the prediction.
        slope: Least-squares slope of log(remainder) against log(scale): 2 for a correct first-order term,
            1 for a wrong one.
    """

    scales: tuple[float, ...]
    relative: tuple[float, ...]
    slope: float


def remainder_slope(
    model: HasSites | nn.Module,
    weight_update: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    at: Site | str = LOGITS,
    scales: Sequence[float] = DEFAULT_SCALES,
) -> Remainder:
    """Measure how fast the error of :func:`first_order_shift` falls with the size of the update.

    Use a float64 model inside :func:`steerscope.true_float64`; in float32 rounding hides the remainder early.

    Args:
        model: A causal language model in evaluation mode.
        weight_update: The update at scale 1, by parameter name.
        inputs: As in :func:`first_order_shift`.
        at: A site, or ``"logits"``.
        scales: At least two positive factors.

    Returns:
        The relative error at every scale, and its slope on logarithmic axes.

    Raises:
        InputError: As :func:`first_order_shift`; fewer than two scales; an update that moves nothing.
    """
    linear = first_order_shift(model, weight_update, inputs, (at,))[at]
    return fit_remainder(lambda t: measured_shift(model, weight_update, inputs, (at,), scale=t)[at], linear, scales)


def fit_remainder(measured: Callable[[float], Tensor], linear: Tensor, scales: Sequence[float]) -> Remainder:
    """Compare ``measured(t)`` with ``t * linear`` at every scale and fit the slope.

    Args:
        measured: Gives the real shift at a scale.
        linear: The predicted shift at scale 1, in the same shape.
        scales: At least two positive factors.

    Returns:
        The relative error at every scale, and its slope on logarithmic axes.

    Raises:
        InputError: Fewer than two positive scales, or a prediction that is zero, NaN or infinite.
    """
    if len(scales) < 2 or min(scales) <= 0:
        raise InputError(f"scales are {tuple(scales)}; expected at least two positive factors.")
    size = float(linear.norm())
    require_finite("the size of the predicted shift", size)
    if size == 0:
        raise InputError(
            "the predicted shift is zero: a slope would mean nothing. Choose a site above the updated weight."
        )
    left = [float((measured(t) - t * linear).norm()) for t in scales]
    require_finite("what the prediction leaves over", *left)
    relative = tuple(r / (t * size) for r, t in zip(left, scales, strict=True))
    return Remainder(tuple(scales), relative, slope_of(scales, left))


def slope_of(x: Iterable[float], y: Iterable[float]) -> float:
    """Return the least-squares slope of log y against log x.

    Args:
        x: Positive numbers.
        y: As many numbers, not negative.

    Returns:
        The exponent p of the best ``y = c x^p``.
    """
    return float(np.polyfit(np.log(list(x)), np.log(np.maximum(list(y), 1e-300)), 1)[0])
