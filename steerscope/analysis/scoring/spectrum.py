"""Kernel regression with a ridge of its own: leave-one-prompt-out for many ridges from one eigendecomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.analysis.scoring.kernels import Rows
from steerscope.analysis.scoring.problem import Direction, Problem
from steerscope.equivalence.kernels import RidgeFit

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridges that a site may choose from, in units of its kernel's mean diagonal."""


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of a unit-scale kernel over the training rows of one direction.

    Attributes:
        values: ``mode``: eigenvalues, none below zero.
        vectors: ``train mode``.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, kernel: Tensor) -> Spectrum:
        """Decompose a kernel ``train train``. Cost: about ``9 train^3`` multiplications.

        Returns:
            Eigenvalues, at least 0 and increasing, with their vectors.
        """
        values, vectors = torch.linalg.eigh(kernel)
        return cls(values.clamp_min(0), vectors)

    def fit(self, ridge: float) -> RidgeFit:
        """Return the regression with one ridge. Cost: ``train^3`` multiplications."""
        return RidgeFit((self.vectors / (self.values + ridge)) @ self.vectors.T)

    def left_out_error(self, target: Tensor, example: Tensor, ridge: float) -> float:
        """Return the sum of squares of ``target - prediction``, each prompt predicted from all others.

        With ``M`` the inverse of kernel plus ridge and ``B`` a prompt's rows, the error is ``M_BB^-1 (M target)_B``.

        Args:
            target: ``train``.
            example: ``train``: which prompt each row belongs to.
            ridge: Added to the eigenvalues.

        Returns:
            A sum of squares in the unit of the target.
        """
        _, prompt, counts = torch.unique_consecutive(example, return_inverse=True, return_counts=True)
        slot = torch.arange(len(example)) - (counts.cumsum(0) - counts)[prompt]
        padded = self.vectors.new_zeros(len(counts), int(counts.max()), len(self.values))
        padded[prompt, slot] = self.vectors
        shrunk = padded / (self.values + ridge)
        # A slot that a prompt does not have stands for itself alone, and errs by nothing.
        missing = (torch.arange(padded.shape[1]) >= counts[:, None]).to(padded)
        blocks = shrunk @ padded.mT + torch.diag_embed(missing)
        weights = shrunk @ (self.vectors.T @ target.to(padded))
        return float(torch.linalg.solve(blocks, weights[..., None]).double().pow(2).sum())


def spectra_of(kernel: Tensor, problem: Problem) -> tuple[Spectrum, ...]:
    """Return the spectrum of a unit-scale kernel ``row row`` on the training rows of each direction.

    Args:
        kernel: Kernel of unit mean diagonal ``(row row)``.
        problem: The held-out problem.

    Returns:
        One spectrum per direction of cross-fitting, in the order of ``problem.directions``.
    """
    return tuple(Spectrum.of(kernel[way.train, way.train]) for way in problem.directions)


def chosen_ridge(spectra: Sequence[Spectrum], problem: Problem, rows: Rows, targets: Sequence[Tensor]) -> float:
    """Return the ridge of :data:`RIDGES` with the least leave-one-prompt-out error, both directions together.

    Args:
        spectra: Of the kernel, per direction.
        problem: The held-out problem.
        rows: What the kernel's rows are.
        targets: ``train`` per direction.

    Returns:
        One of :data:`RIDGES`.
    """

    def error(ridge: float) -> float:
        parts = zip(spectra, problem.directions, targets, strict=True)
        return sum(one.left_out_error(target, rows.example[way.train], ridge) for one, way, target in parts)

    return min(RIDGES, key=error)


def predicted(kernel: Tensor, way: Direction, fit: RidgeFit, target: Tensor) -> Tensor:
    """Return what a regression on ``train column`` predicts on ``test column``; column 1 + g without group g.

    Args:
        kernel: ``row row``, unit scale.
        way: Which rows learn and judge.
        fit: The regression on the training rows.
        target: ``train column``.

    Returns:
        Predictions ``(test column)``.
    """
    present = (target * way.train_in).to(kernel)
    left_out = [(rows, [1 + group]) for group, rows in enumerate(way.groups)]
    return (kernel[way.test, way.train] @ fit.weights_without(present, left_out)).double()
