r"""Tangent features: rows of the Jacobian of the outputs with respect to a weight matrix or to an edit at a hook point.

Their Gram matrix is the empirical neural tangent kernel (:mod:`steerscope.equivalence.kernels`).

With ``g_t`` the derivative of the output with respect to the tensor written at token t and ``x_t`` what is read
there, the derivative with respect to the matrix between them is

.. math:: \partial z / \partial A = \sum_t g_t x_t^\top

for a weight matrix (``x`` its input, ``g`` the gradient of its output) and for a linear edit of a site (``x``
what the site reads) alike; for a fixed vector it is :math:`\sum_t g_t`. Source: P38 in docs/theory.md.

A *sketch* replaces the ``d_out x d_in`` matrix by a few small blocks ``P_r (dz/dA) Q_r^T`` whose inner products
are unbiased estimates of those of the full matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_tangent(grad: Tensor, read: Tensor) -> Tensor:
    """Return ``sum_t g_t x_t^T``: ``batch token out`` and ``batch token in`` to ``batch out in``.

    Exact. Masked tokens must be zero in one of the two. Source: P38.

    Args:
        grad: Derivative of the output by what is written, ``batch token out``.
        read: What is read, ``batch token in``.

    Returns:
        ``batch out in``.
    """
    return torch.einsum("bto,bti->boi", grad, read)


def vector_tangent(grad: Tensor) -> Tensor:
    """Return ``sum_t g_t``: ``batch token out`` to ``batch out``. Masked tokens must be zero."""
    return grad.sum(1)


def combine(grad: Tensor, read: Tensor, blocks: int = 1) -> Tensor:
    """Return the tangent features ``batch feature`` from (projected) derivatives and reads.

    Args:
        grad: ``batch token blocks*p``.
        read: ``batch token blocks*q``.
        blocks: Number of independent blocks. For one token the relative variance of an estimated inner
            product is about ``((1 + 2/p)(1 + 2/q) - 1) / blocks``, so many small blocks beat one large one
            of the same length: 16 blocks of 16 x 16 have 0.017, one of 64 x 64 has 0.063.

    Returns:
        ``batch blocks*p*q``, scaled so that inner products over all blocks are means.

    Cost: ``token * blocks * p * q`` multiplications per example.
    """
    return (split_blocks(grad, blocks).mT @ split_blocks(read, blocks) / math.sqrt(blocks)).flatten(1)


def split_blocks(projected: Tensor, blocks: int) -> Tensor:
    """View ``batch token blocks*q`` as ``batch block token q``.

    Args:
        projected: ``batch token blocks*q``.
        blocks: Number of independent blocks.

    Returns:
        A view ``batch block token q``.
    """
    return projected.unflatten(-1, (blocks, -1)).transpose(1, 2)


def random_projection(rows: int, width: int, *, blocks: int, generator: torch.Generator) -> Tensor:
    """Draw ``rows width``, each block of ``rows / blocks`` rows preserving inner products on average.

    Rows are orthogonal within groups of ``width``, which takes away part of the variance that independent
    rows have. More rows than ``width`` are drawn as two independent halves of the blocks: halves of one group
    would complete each other, and their difference would overstate the error of the whole.

    Args:
        rows: Length of the result, a multiple of ``blocks``.
        width: Channels that are projected.
        blocks: Number of independent blocks.
        generator: Source of the draws; moves on.

    Returns:
        ``rows width``, to be applied as ``x @ projection.T``.
    """
    halves = 2 if rows > width and blocks % 2 == 0 else 1
    drawn = [_orthogonal_rows(rows // halves, width, generator) for _ in range(halves)]
    return torch.cat(drawn) * math.sqrt(width / (rows // blocks))


def _orthogonal_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    groups, missing = [], rows
    while missing > 0:
        take = min(missing, width)
        basis, _ = torch.linalg.qr(torch.randn(width, take, generator=generator, dtype=torch.float64))
        groups.append(basis.T)
        missing -= take
    # Shuffled, so that no block is made of neighbours of one orthogonal group alone.
    return torch.cat(groups)[torch.randperm(rows, generator=generator)]
