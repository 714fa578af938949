"""Empirical neural tangent kernels (NTKs): Gram matrices of tangent features, and ridge regression with them.

An entry is the inner product of two outputs' gradients with respect to the parameters of a weight matrix or of an edit.
Pure functions of tensors. Source: Jacot et al. 2018, arXiv 1806.07572.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of a Gram matrix computed in one product: enough for full speed, few enough to leave out most of the upper half.
GRAM_ROWS = 128


def gram(features: Tensor) -> Tensor:
    """Return ``features @ features.T`` (``row feature`` to ``row row``), in float32 at least.

    Cost: ``row^2 * feature / 2`` multiplications for many rows: the upper half is the lower one's mirror image.
    """
    wide = widened(features)
    out = wide.new_empty(len(wide), len(wide))
    for start in range(0, len(wide), GRAM_ROWS):
        stop = start + GRAM_ROWS
        out[start:, start:stop] = wide[start:] @ wide[start:stop].T
        out[start:stop, stop:] = out[stop:, start:stop].T
    return out


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor of a half precision in float32, any other as it is."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


@dataclass(frozen=True)
class RidgeFit:
    """Kernel ridge regression of several targets, with everything that leaving groups of rows out needs.

    ``inverse`` is ``(K + ridge I)^-1`` over the training rows.
    """

    inverse: Tensor

    @classmethod
    def of(cls, kernel: Tensor, ridge: float) -> RidgeFit:
        """Factor ``kernel`` plus the ridge.

        Args:
            kernel: ``train train``.
            ridge: Added to the diagonal, in the kernel's units.

        Returns:
            The fit with its inverse; the kernel is not kept.

        Raises:
            torch.linalg.LinAlgError: The kernel plus ridge is not positive definite (it held NaN).
        Cost: about ``train^3`` multiplications, once for any number of targets.
        """
        return cls(torch.cholesky_inverse(_factor(kernel, ridge)))

    def weights(self, targets: Tensor) -> Tensor:
        """Return the dual weights ``train target`` of targets ``train target``."""
        return self.inverse @ targets

    def weights_without(self, targets: Tensor, left_out: Iterable[tuple[slice, Sequence[int]]]) -> Tensor:
        """Return the dual weights ``train target`` when some targets are fitted without some of the rows.

        Exact, by the block inverse: with M the full inverse, k the rows kept and o those left out, the inverse of
        the kept block is ``M_kk - M_ko M_oo^-1 M_ok``. Rows left out get weight 0.

        Args:
            targets: ``train target``, zero in the rows that a target leaves out.
            left_out: Pairs of rows and the targets (columns) that are fitted without them; a target is in one pair.

        Returns:
            ``train target``.

        Cost: two matrix products for all targets and one small solve per pair.
        """
        full = self.inverse @ targets
        # What is to be taken off is the inverse times numbers at the rows left out: one product for all pairs.
        at_rows = torch.zeros_like(full)
        runs = runs_of(left_out)
        for rows, columns in runs:
            own = rows[:, :, None], columns[:, None, :]
            at_rows[own] = torch.linalg.solve(self.inverse[rows[:, :, None], rows[:, None, :]], full[own])
        changed = torch.unique(torch.cat([columns.flatten() for _, columns in runs])) if runs else []
        full[:, changed] -= self.inverse @ at_rows[:, changed]
        for rows, columns in runs:
            full[rows[:, :, None], columns[:, None, :]] = 0
        return full


def runs_of(left_out: Iterable[tuple[slice, Sequence[int]]]) -> list[tuple[Tensor, Tensor]]:
    """Put together what is left out alike, so that one call does for many: many small ones take longer to call.

    Args:
        left_out: Pairs of rows and the targets (columns) that are fitted without them.

    Returns:
        Pairs of indices ``run row`` and ``run target``; in each as many rows and targets for every run.
    """
    alike: dict[tuple[int, int], list[tuple[int, Sequence[int]]]] = {}
    for rows, columns in left_out:
        alike.setdefault((rows.stop - rows.start, len(columns)), []).append((rows.start, columns))
    return [
        (torch.tensor([[start] for start, _ in runs]) + torch.arange(size), torch.tensor([list(c) for _, c in runs]))
        for (size, _), runs in alike.items()
    ]


def ridge_weights(kernel: Tensor, targets: Tensor, ridge: float | Tensor) -> Tensor:
    """Return the dual weights ``train target`` of kernel ridge regression, where no rows are to be left out.

    Args:
        kernel: ``... train train``, of one or several kernels; what is above the diagonal is not read.
        targets: ``train target``.
        ridge: Added to the diagonal: one number, or one for each kernel.

    Returns:
        ``... train target``.

    Raises:
        torch.linalg.LinAlgError: The kernel plus ridge is not positive definite (it held NaN).

    Cost: about ``train^3 / 3`` multiplications, a third of :class:`RidgeFit`.
    """
    return torch.cholesky_solve(targets.expand(*kernel.shape[:-2], *targets.shape), _factor(kernel, ridge))


def _factor(kernel: Tensor, ridge: float | Tensor) -> Tensor:
    penalised = kernel.clone()
    penalised.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None] if isinstance(ridge, Tensor) else ridge)
    return torch.linalg.cholesky(penalised)
