"""A model's norms as tensors: gain, epsilon, and what they divide by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NormParts:
    """A norm as tensors: ``gain * (x - mean) / sqrt(var + eps) + bias``; no mean and no bias in RMSNorm."""

    gain: Tensor
    eps: float
    is_centred: bool


def norm_parts(norm: nn.Module, width: int) -> NormParts:
    """Return gain and epsilon of a LayerNorm or of an RMSNorm of any spelling (Gemma's gain is ``1 + weight``).

    Args:
        norm: A LayerNorm, or an RMSNorm of any family.
        width: Channels it normalises over.

    Returns:
        Gain ``(width,)``, epsilon, and whether the mean is subtracted.
    """
    eps = epsilon_of(norm)
    if isinstance(norm, nn.LayerNorm):
        return NormParts(norm.weight.detach(), eps, True)
    # Ones have root mean square 1, so the norm of ones is the gain up to epsilon.
    ones = torch.ones(width, dtype=torch.float64)
    return NormParts(norm(ones).detach() * (1 + eps) ** 0.5, eps, False)


def epsilon_of(norm: nn.Module) -> float:
    """Return a norm's epsilon, under either name that families give it; 0 where it has none."""
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))


def norm_size(x: Tensor, eps: float, is_centred: bool) -> Tensor:
    """Return what a norm divides by, ``(..., 1)``: root mean square, for LayerNorm the standard deviation.

    Args:
        x: What the norm receives, ``(..., d)``.
        eps: The norm's epsilon.
        is_centred: Whether the mean is subtracted, as in LayerNorm.

    Returns:
        ``(..., 1)``.
    """
    return (centred(x, is_centred).square().mean(-1, keepdim=True) + eps).sqrt()


def centred(x: Tensor, is_centred: bool) -> Tensor:
    """Return rows ``(..., d)`` without their mean, or as they are.

    Args:
        x: Rows ``(..., d)``.
        is_centred: Whether the mean is subtracted, as in LayerNorm.

    Returns:
        ``(..., d)``.
    """
    return x - x.mean(-1, keepdim=True) if is_centred else x
