"""Matrix products of numbers that stand for others up to a sketch's error: in bfloat16 where a processor multiplies it.

Processors with matrix units (GPUs, CPUs with AMX) multiply bfloat16 several times as fast as float32, and add up in
float32. Rounding of the factors, 1 in 500 each and independent, averages out over the channels that a projection sums.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from steerscope.equivalence.kernels import gram

# Rows of a Gram matrix of whole numbers that are computed in one product.
_ROWS = 288


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Say whether a device has units that multiply bfloat16 faster than float32.

    Args:
        device: Where the factors are.

    Returns:
        ``True`` for GPUs from NVIDIA's compute capability 8 on, and CPUs with AMX.
    """
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    # No public function tells; where the private ones are missing the answer is the safe one.
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and has_tiles is not None and bool(has_tiles())


def rough_factor(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a factor of :func:`rough_product` in the data type in which it is multiplied.

    Args:
        factor: Any tensor of floating point numbers.
        dtype: What is to be computed in: float32 may be multiplied as bfloat16, float64 stays what it is.

    Returns:
        The factor itself where it has that data type already.
    """
    return factor.to(rough_dtype(dtype, factor.device))


def rough_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the data type that factors are multiplied in: bfloat16 for float32 where a device multiplies it fast.

    Args:
        dtype: What is to be computed in: float32 or float64.
        device: Where the factors are.

    Returns:
        bfloat16, or ``dtype`` itself.
    """
    return torch.bfloat16 if dtype == torch.float32 and multiplies_bfloat16(device) else dtype


def rough_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``left @ right`` in ``dtype``, its factors and the result rounded to bfloat16 where that is fast.

    Args:
        left: ``(... inner)``.
        right: ``(inner out)``; :func:`rough_factor` of it, computed once, saves its conversion.
        dtype: float32 or float64.

    Returns:
        ``(... out)``.
    """
    return (rough_factor(left, dtype) @ rough_factor(right, dtype)).to(dtype)


def integer_products(rows: Tensor, units: Tensor) -> Tensor:
    """Return ``(units * rows) @ (units * rows).T`` of whole numbers of eight bits, in float32.

    Args:
        rows: ``(row inner)``, ``int8``.
        units: ``(row)``: what one is worth in each row, float32.

    Returns:
        ``(row row)``. Products of the whole numbers are exact up to 2^24; larger ones, and units, are rounded.

    Cost: a quarter of float32's on CPUs with AMX.
    """
    product = getattr(torch, "_int_mm", None)  # not public: where it is missing, float32 gives the same
    if product is None or not rows.numel() or rows.device.type != "cpu" or not multiplies_bfloat16(rows.device):
        return gram(rows.float()).mul_(units[:, None] * units)
    out = torch.empty(len(rows), len(rows))
    # As in gram(): below the diagonal, and what is above it is the mirror image.
    for start in range(0, len(rows), _ROWS):
        stop = start + _ROWS
        part = product(rows[start:], rows[start:stop].T).float().mul_(units[start:, None] * units[start:stop])
        out[start:, start:stop] = part
        out[start:stop, stop:] = part[_ROWS:].T
    return out
