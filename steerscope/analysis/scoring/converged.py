"""Fine-tuning's converged update: what the linearised model has learned when training ends, not after one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Problem, group_means
from steerscope.analysis.scoring.spectrum import Spectrum, predicted

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Penalties that fine-tuning may choose from, in units of its kernel's mean diagonal."""


@dataclass(frozen=True)
class Converged:
    """``u_l = K_FT (K_FT + l)^-1 r`` of both directions, at the ``l`` that serves fine-tuning itself best.

    Attributes:
        penalty: ``l``, in units of the kernel's mean diagonal.
        decreases: Per penalty, the decrease of the held-out loss in the linearised model, to second order in the
            outputs; nats per prompt.
        updates: Per direction the update ``train column`` and ``test column``, its mean per probe over the training
            rows removed.
    """

    penalty: float
    decreases: dict[float, float]
    updates: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, target: Kernel, problem: Problem, rows: Rows, curvature: Tensor) -> Converged:
        """Solve the regression of the loss residual with fine-tuning's kernel.

        The penalty is chosen on column 0, where fine-tuning's own linearised held-out loss is lowest, both directions
        together; no site is looked at.

        Args:
            target: Fine-tuning's kernel.
            problem: The held-out problem.
            rows: What the kernel's rows are.
            curvature: ``example probe probe``: the softmax's Fisher matrices.

        Returns:
            The penalty, fine-tuning's held-out loss decrease per penalty, and the converged update of both directions.

        Cost: one eigendecomposition of half the rows per direction, once for all sites.
        """
        kernel = target.probe.double() / max(target.scale, 1e-300)
        spectra = [Spectrum.of(kernel[way.train, way.train]) for way in problem.directions]
        decreases = {}
        for penalty in PENALTIES:
            total = 0.0
            for way, spectrum in zip(problem.directions, spectra, strict=True):
                update = kernel[way.test, way.train] @ spectrum.fit(penalty).weights(way.residual[0][:, None])
                total += float(loss_decrease(update[:, 0], way.residual[1], rows, way.test, curvature))
            decreases[penalty] = total / rows.num_examples
        penalty = max(PENALTIES, key=lambda one: decreases[one])
        updates = []
        for way, spectrum in zip(problem.directions, spectra, strict=True):
            residual = way.residual[0][:, None].expand(-1, way.train_in.shape[1])
            fit = spectrum.fit(penalty)
            update = torch.empty(len(kernel), residual.shape[1], dtype=torch.float64)
            update[way.test] = predicted(kernel, way, fit, residual)
            weights = fit.weights_without(residual * way.train_in, [(g, [1 + n]) for n, g in enumerate(way.groups)])
            update[way.train] = kernel[way.train, way.train] @ weights
            centred = update - group_means(update[way.train], way.train_in, rows.group[way.train], rows.group)
            updates.append((centred[way.train], centred[way.test]))
        return cls(penalty, decreases, tuple(updates))


def loss_decrease(update: Tensor, residual: Tensor, rows: Rows, part: slice, curvature: Tensor) -> Tensor:
    """Return ``sum <r, u> - u C u / 2`` over the rows of a part: how far an update lowers the loss, to second order.

    Args:
        update: ``row`` of the part.
        residual: ``row`` of the part.
        rows: What all rows are.
        part: Which rows.
        curvature: ``example probe probe``.

    Returns:
        Sums in nats, one per column of the update.
    """
    dense = torch.zeros(curvature.shape[:2], dtype=torch.float64)
    dense[rows.example[part], rows.probe[part]] = update
    bent = torch.einsum("np,npq,nq->", dense, curvature.double(), dense)
    return update @ residual - bent / 2
