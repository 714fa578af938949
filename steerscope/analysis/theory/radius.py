r"""How large an update may be before its first-order map stops explaining what it does.

For an update scaled to relative size :math:`s = \|t\,\Delta W\| / \|W\|`, the explained part of a token's shift is

.. math:: 1 - e^2, \qquad e = \|\delta h_{measured} - \delta h_{predicted}\| / \|\delta h_{measured}\|

and that of a site is the median over tokens: a sum over tokens would be about the few whose stream is tens of times
longer than the others'. The *radius* is the smallest size at which it falls below 0.9, interpolated between the sizes
of the grid on logarithmic axes. Source: this project, for the reach of P1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steerscope.analysis.theory.common import Update, explained_per_token, relative_size, scaled
from steerscope.equivalence.shifts import first_order_shift, measured_shifts
from steerscope.errors import InputError
from steerscope.models.load import LoadedModel

THRESHOLD = 0.9
SIZES = tuple(10 ** (-4.5 + k / 2) for k in range(9))
# Far outside, the explained part is a large negative number that says nothing more.
_FLOOR = -1.0


@dataclass(frozen=True)
class Radius:
    """The radius of one update at one place.

    Attributes:
        at: A site, or ``"logits"``.
        update: Which update.
        scope: Which weights it changes.
        radius: Relative size of the update up to which the first-order map explains the threshold.
        bound: ``"above"`` if the whole grid is explained (the radius is at least the number), ``"below"`` if none
            is (at most the number), else ``""``.
        explained: The explained part at every size of the grid, cut at -1.
    """

    at: str
    update: str
    scope: str
    radius: float
    bound: str
    explained: tuple[float, ...]


def first_order_radius(
    loaded: LoadedModel,
    update: Update,
    ids: Tensor,
    at: Sequence[str],
    *,
    name: str = "update",
    scope: str = "all layers",
    sizes: Sequence[float] = SIZES,
    threshold: float = THRESHOLD,
    skip: int = 1,
) -> tuple[Radius, ...]:
    """Measure the radius of one update at several places.

    Args:
        loaded: The model.
        update: Change per parameter name; only its direction matters.
        ids: ``batch token``, without padding.
        at: Sites, or ``"logits"``.
        name: Name of the update in the result.
        scope: Name of the weights it changes.
        sizes: Relative sizes, increasing. In float32 sizes below 1e-5 measure rounding.
        threshold: Explained part that counts as explained.
        skip: Positions left out at the start; the first token sees nothing but itself.

    Returns:
        Per place the relative size up to which the first-order shift explains what is measured.

    Raises:
        InputError: Fewer than two sizes or sizes that do not increase, a threshold outside 0 to 1.

    Cost: a tangent pass, a forward pass and one more per size.
    """
    if len(sizes) < 2 or sorted(set(sizes)) != list(sizes) or sizes[0] <= 0:
        raise InputError(
            f"sizes are {tuple(sizes)}; expected at least two positive numbers, each larger than the last."
        )
    if not 0 < threshold < 1:
        raise InputError(f"threshold is {threshold}; expected a fraction between 0 and 1, such as 0.9.")
    unit = scaled(update, 1 / relative_size(loaded, update))
    inputs = {"input_ids": ids}
    predicted = first_order_shift(loaded, unit, inputs, at)
    parts: dict[str, list[float]] = {place: [] for place in at}
    for size, measured in zip(sizes, measured_shifts(loaded, unit, inputs, at, sizes), strict=True):
        for place in at:
            pair = measured[place][:, skip:], size * predicted[place][:, skip:]
            parts[place].append(max(explained_per_token(*pair), _FLOOR))
    return tuple(
        Radius(place, name, scope, *crossing(sizes, parts[place], threshold), tuple(parts[place])) for place in at
    )


def crossing(sizes: Sequence[float], parts: Sequence[float], threshold: float) -> tuple[float, str]:
    """Return where the explained part first falls below the threshold, and on which side of the grid if outside.

    Args:
        sizes: Relative sizes, increasing.
        parts: Explained part at each size.
        threshold: Explained part, between 0 and 1, that counts as explained.

    Returns:
        The size, interpolated in logarithms, and ``"above"`` or ``"below"`` where it lies outside the grid, else
        ``""``.

    Example:
        >>> crossing([0.1, 1.0], [0.99, 0.98], 0.9)
        (1.0, 'above')
    """
    below = next((index for index, part in enumerate(parts) if not part >= threshold), None)
    if below is None:
        return sizes[-1], "above"
    if below == 0:
        return sizes[0], "below"
    # The error is a power of the size, so its logarithm is a line in the logarithm of the size.
    error = [0.5 * math.log(max(1 - parts[index], 1e-30)) for index in (below - 1, below)]
    wanted = 0.5 * math.log(1 - threshold)
    share = (wanted - error[0]) / (error[1] - error[0])
    start, end = math.log(sizes[below - 1]), math.log(sizes[below])
    return math.exp(start + share * (end - start)), ""
