"""What scores are computed from: one candidate's kernel beside fine-tuning's, and what several scores share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from steerscope.analysis.capture.places import PlaceStats
from steerscope.analysis.scoring.converged import Converged
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Direction, Predictions, Problem, predict, predict_by_features
from steerscope.analysis.scoring.spectrum import Spectrum, spectra_of
from steerscope.finite import require_finite
from steerscope.sites import Site


@dataclass(frozen=True)
class Place:
    """Where a candidate is.

    Attributes:
        site: The site.
        num_layers: Blocks of the model.
        read_rms: Root mean square of what the site reads, in the units of the residual stream.
        held_length: Typical length of what an edit there is added to, in the same units.
        stats: What else is known of it without a derivative.
    """

    site: Site
    num_layers: int
    read_rms: float
    held_length: float
    stats: PlaceStats


@dataclass(frozen=True)
class Candidate:
    """An edit that could be trained: at one site, or at several together.

    Every score of a kernel comes as a vector (``column``): entry 0 from all prompts, entry 1 + g with group g of the
    prompts left out.

    Attributes:
        family: ``linear`` or ``vector``.
        place: Where it is; None for several sites together.
        kernel: Its neural tangent kernel: Gram matrix of the derivatives of the outputs by the edit's parameters.
        target: Fine-tuning's kernel, the sum over all linear maps of the blocks.
        problem: The held-out regression made from ``target``.
        rows: What the kernels' rows are: (example, probe) pairs.
        curvature: ``example probe probe``: the softmax's Fisher matrices.
        squared_length: Returns ``row row``, whose quadratic form in a regression's dual weights is the square of the
            edit's length over that of what it is added to. A number stands for so many times the unit kernel
            (:func:`relative_length`).
        seed: Seed of what is drawn.
        converged: Fine-tuning's converged update, for scores that need a spectrum.
        vector: The fixed vector at the same place, for those; None for a vector itself.
        num_training: Examples that training will see.
        step: ``length example``: how far a Gauss-Newton step lowers the loss, where one was taken.
    """

    family: str
    place: Place | None
    kernel: Kernel
    target: Kernel
    problem: Problem
    rows: Rows
    curvature: Tensor
    squared_length: Callable[[], Tensor] | float
    seed: int = 0
    converged: Converged | None = None
    vector: Candidate | None = None
    num_training: int = 1920
    step: Tensor | None = None

    @property
    def num_columns(self) -> int:
        """All prompts, and each group left out."""
        return 1 + self.problem.num_groups

    @cached_property
    def unit_kernel(self) -> Tensor:
        """The kernel over rows ``row row``, divided by the mean of its diagonal."""
        return self.kernel.probe / self.kernel.unit

    @cached_property
    def predictions(self) -> tuple[tuple[Predictions, Direction], ...]:
        """What the unit kernel predicts from each half on the other, with the problem it answers.

        Cost: one factorisation of half the rows per direction, or of the features where they are few, once for all
        scores.
        """
        factor, unit, ridge = self.kernel.factor, self.kernel.unit, self.problem.ridge
        if factor is not None:
            scaled = factor.double() / math.sqrt(unit)
            return tuple((predict_by_features(scaled, one, ridge), one) for one in self.problem.directions)
        # The kernel as it is with a ridge that much larger predicts the same, and needs no copy of the matrix.
        found = ((predict(self.kernel.probe, one, ridge * unit), one) for one in self.problem.directions)
        return tuple((replace(each, residual_weights=each.residual_weights * unit), one) for each, one in found)

    @cached_property
    def loss_terms(self) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """The first and second derivative of the log-likelihood along each direction's prediction of the residual.

        Sums over the held-out prompts of ``<r, v>`` and of ``v C v`` in nats, and the number of prompts; ``(column)``
        each, once for all scores.
        """
        return tuple(self._loss_terms(found, way) for found, way in self.predictions)

    def _loss_terms(self, found: Predictions, way: Direction) -> tuple[Tensor, Tensor, Tensor]:
        used, truth = way.test_in, way.residual[1][:, None]
        where = self.rows.example[way.test], self.rows.probe[way.test]
        dense = torch.zeros(self.rows.num_examples, self.curvature.shape[1], self.num_columns, dtype=torch.float64)
        dense[where] = found.residual * used
        bent = torch.einsum("npc,npq,nqc->c", dense, self.curvature, dense)
        seen = torch.zeros(self.rows.num_examples, self.num_columns, dtype=torch.float64)
        seen[where[0]] = used
        return (found.residual * truth * used).sum(0), bent, seen.sum(0)

    @cached_property
    def spectra(self) -> tuple[Spectrum, ...]:
        """The spectrum of the unit kernel on the training rows of each direction, once for all scores."""
        return spectra_of(self.unit_kernel, self.problem)

    @cached_property
    def included(self) -> Tensor:
        """``example column``: 1 where an example takes part."""
        found = torch.zeros(self.rows.num_examples, self.num_columns, dtype=torch.float64)
        for direction in self.problem.directions:
            found[self.rows.example[direction.train]] = direction.train_in
        return found

    def squares_of_edit(self, weights: Tensor, way: Direction) -> Tensor:
        """Return the squared relative lengths ``column`` of the edits that a regression made.

        Args:
            weights: Its dual weights ``(train column)``, of the ranking's ridge.
            way: The direction of cross-fitting.

        Returns:
            The quadratic form of ``squared_length`` in them.
        """
        if not isinstance(self.squared_length, float):
            form = self.squared_length()[way.train, way.train]
            return (weights * (form.double() @ weights)).sum(0)
        if self.kernel.factor is not None:
            changed = self.kernel.factor[way.train].double().T @ weights
            return self.squared_length * changed.pow(2).sum(0) / self.kernel.unit
        kernel = self.kernel.probe[way.train, way.train]
        return self.squared_length * (weights * (kernel @ weights.to(kernel)).double()).sum(0) / self.kernel.unit

    def zeros(self) -> Tensor:
        """Return a score of zero ``column``."""
        return torch.zeros(self.num_columns, dtype=torch.float64)


def r_squared(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return 1 - (squared error) / (squared truth) per column, pooled over (prediction, truth, used)."""
    error = torch.stack([((truth - predicted) ** 2 * used).sum(0) for predicted, truth, used in parts]).sum(0)
    size = torch.stack([(truth**2 * used).sum(0) for _, truth, used in parts]).sum(0)
    return 1 - error / size.clamp_min(1e-300)


def is_zero(kernel: Tensor | Kernel) -> bool:
    """Whether a kernel ``row row`` is zero: an edit that moves no output.

    Returns:
        ``True`` where the mean of the diagonal is not above zero.

    Raises:
        InputError: It is NaN or infinite.
    """
    scale = kernel.scale if isinstance(kernel, Kernel) else float(kernel.diagonal().mean())
    require_finite("a kernel", scale)
    return scale <= 0


def relative_length(kernel: Tensor | Kernel, read_length: float, held_length: float) -> float:
    """Return the ``squared_length`` of an edit whose kernel ``row row`` this is, in units of the unit kernel.

    With dual weights ``b`` of the kernel at unit scale, ``c`` that scale, the edit's matrix has the squared norm
    ``b^T K b / c^2``, and moves a token that reads ``x / s`` by at most that norm times ``|x / s|``.

    Args:
        kernel: Not scaled.
        read_length: Typical length of what the edit reads, as its features are scaled; 1 for a fixed vector.
        held_length: Typical length of what the edit is added to.

    Returns:
        A number that the quadratic form of the unit kernel in dual weights is multiplied with; 0 for a kernel of zero.
    """
    if is_zero(kernel):
        return 0.0
    scale = kernel.scale if isinstance(kernel, Kernel) else float(kernel.diagonal().mean())
    return (read_length / max(held_length, 1e-30)) ** 2 / scale
