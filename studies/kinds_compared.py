"""Which kind of site is better at a layer? Two kinds trained at the same layers, compared layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steerscope.experiments.agreement.correlations import Array, finite_losses
from steerscope.experiments.agreement.layer_bootstrap import Estimate, interval_half
from steerscope.experiments.agreement.layer_pairs import layer_pairs


@dataclass(frozen=True)
class KindsCompared:
    """Two kinds of site at the layers that have both.

    Attributes:
        first: One kind.
        second: The other.
        num_layers: Layers.
        difference: Trained loss at the first minus that at the second, nats, mean over layers and seeds, with its 95%
            interval: layers as a sample of layers like these, seeds as one of seeds.
        median: The median over layers, which single layers that learn nothing do not move.
        first_better: Layers where the first has the lower loss by more than noise.
        second_better: Layers where the second has.
    """

    first: str
    second: str
    num_layers: int
    difference: Estimate
    median: float
    first_better: int
    second_better: int


def rows_of(losses: Mapping[tuple[int, str], Array], first: str, second: str) -> tuple[list[int], Array]:
    """Return the layers that have both kinds, and their losses.

    Args:
        losses: Trained losses ``(seed)`` by layer and kind, nats; infinite where a run diverged.
        first: One kind.
        second: The other.

    Returns:
        The layers, and finite losses ``(row seed)``: two rows per layer, the first kind's above the second's.
    """
    layers = sorted({layer for layer, _ in losses if (layer, first) in losses and (layer, second) in losses})
    return layers, finite_losses(np.array([losses[layer, kind] for layer in layers for kind in (first, second)]))


def kinds_compared(losses: Mapping[tuple[int, str], Array], first: str, second: str) -> KindsCompared | None:
    """Compare two kinds of site.

    Args:
        losses: Trained losses ``(seed)`` by layer and kind, nats; infinite where a run diverged.
        first: One kind.
        second: The other.

    Returns:
        The comparison, or None with fewer than two layers that have both.
    """
    layers, rows = rows_of(losses, first, second)
    if len(layers) < 2:
        return None
    differences = rows[::2] - rows[1::2]  # layer seed
    means, seeds = differences.mean(1), differences.mean(0)
    parts = [(float(means.var(ddof=1)) / len(means), len(means) - 1.0)]
    if len(seeds) > 1:
        parts.append((float(seeds.var(ddof=1)) / len(seeds), len(seeds) - 1.0))
    half, mean = interval_half(parts), float(means.mean())
    pairs = layer_pairs(rows, np.repeat(layers, 2))
    won = int((pairs.better % 2 == 0).sum())
    return KindsCompared(
        first, second, len(layers), Estimate(mean, mean - half, mean + half), float(np.median(means)), won,
        len(pairs) - won,
    )  # fmt: skip
