"""Sketched features as whole numbers of eight bits: half the memory of bfloat16, and exact inner products.

Every feature has a unit of its own, the 127th part of its largest number. Rounding moves a kernel by less than a
thousandth, where a sketch's own error is some percent: errors of thousands of numbers average out. The unit stands in
the last four bytes, as a float32, so that features are plain tensors whose rows can be picked, saved and put together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.equivalence.kernels import gram, widened
from steerscope.equivalence.products import integer_products

LARGEST = 127
UNIT_BYTES = 4


def rounded(feature: Tensor) -> Tensor:
    """Return features ``... feature`` as ``int8``, ``... feature + 4``; what is not finite keeps a unit that is not."""
    return rounded_over(feature.clone())


def rounded_over(feature: Tensor, factor: float = 1.0) -> Tensor:
    """Return :func:`rounded` of features times a positive number, writing over the features.

    Args:
        feature: ``... feature``, whose memory is used.
        factor: What they are to be multiplied by.

    Returns:
        ``int8``, ``... feature + 4``.
    """
    units = feature.abs().amax(-1, keepdim=True) / LARGEST
    numbers = feature.mul_(torch.where(units == 0, 1, units).reciprocal_()).round_()
    out = torch.empty(*feature.shape[:-1], feature.shape[-1] + UNIT_BYTES, dtype=torch.int8, device=feature.device)
    out[..., :-UNIT_BYTES] = numbers
    out[..., -UNIT_BYTES:] = (units * factor).float().view(torch.int8)
    return out


def numbers_of(feature: Tensor) -> Tensor:
    """Return the whole numbers ``... feature`` of rounded features."""
    return feature[..., :-UNIT_BYTES]


def units_of(feature: Tensor) -> Tensor:
    """Return what one is worth ``...`` in each of rounded features."""
    # A copy, which begins where four bytes begin: rows need not.
    return feature[..., -UNIT_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)[..., 0]


def blocks_of(feature: Tensor, blocks: slice, of: int) -> Tensor:
    """Return some of the blocks that rounded features are made of, as rounded features.

    Args:
        feature: ``... feature + 4``.
        blocks: Which.
        of: How many there are.

    Returns:
        ``... part + 4``, with the units of the whole.
    """
    part = numbers_of(feature).unflatten(-1, (of, -1))[..., blocks, :].flatten(-2)
    return torch.cat([part, feature[..., -UNIT_BYTES:]], dim=-1)


def wide_feature(feature: Tensor) -> Tensor:
    """Return features, rounded or not, in float32 at least."""
    if feature.dtype != torch.int8:
        return widened(feature)
    return numbers_of(feature).float().mul_(units_of(feature)[..., None])


def gram_of(feature: Tensor) -> Tensor:
    """Return the inner products ``row row`` of features ``row feature``, rounded or not, in float32 at least."""
    if feature.dtype != torch.int8:
        return gram(feature)
    return integer_products(numbers_of(feature).contiguous(), units_of(feature))
