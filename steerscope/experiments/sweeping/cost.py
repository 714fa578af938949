"""What training runs cost in floating-point operations: to compare machines, and searches with sweeps."""

from __future__ import annotations

from steerscope.models.blocks import linear_shape
from steerscope.models.load import LoadedModel


def operations_per_token(loaded: LoadedModel) -> list[float]:
    """Return the floating-point operations per token of a training step by the first block that an edit makes run.

    Two per weight of the linear maps of the blocks from there on, forward, and as many backward: weights are frozen, so
    only activations have gradients. Attention's own products, norms and the output head are left out, so that what is
    said of a machine's use is a lower bound.

    Args:
        loaded: The model.

    Returns:
        One number per block, largest for the first, and 0 for an edit of what the last block gives
        (:attr:`~steerscope.sites.Site.first_block`).
    """
    weights = [0.0] * len(loaded.site_map.blocks)
    for (layer, _), module in loaded.site_map.linear_maps().items():
        d_out, d_in = linear_shape(module)
        weights[layer] += d_out * d_in
    return [4 * sum(weights[layer:]) for layer in range(len(weights) + 1)]
