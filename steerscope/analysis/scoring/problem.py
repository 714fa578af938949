"""The held-out problem every kernel score answers: learn fine-tuning's update from half the prompts.

Prompts are split in two halves by content. Fine-tuning on one half (one gradient step along the loss of its
prompts, all linear maps) moves the outputs of all prompts by ``K_FT residual`` to first order. A site's kernel
is fitted to that update on the same half and judged on the other, then the halves change roles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.equivalence.kernels import RidgeFit, runs_of


@dataclass(frozen=True)
class Direction:
    """One direction of cross-fitting: train on one half, test on the other.

    Column 0 is the whole half, column 1 + g the half without group g.

    Attributes:
        train: Rows to learn from (a slice: halves stand together, so that blocks of a kernel are views).
        test: Rows to judge on.
        train_in: ``train column``: 1 where a row takes part.
        test_in: ``test column``: 1 where a row takes part.
        groups: Training rows of each jackknife group (counted from the first training row).
        update: Fine-tuning's update per row, ``train column`` and ``test column``, mean per probe removed.
        update_with_mean: The same with that mean.
        residual: ``train`` and ``test``: (one-hot minus softmax) along the row's probe.
    """

    train: slice
    test: slice
    train_in: Tensor
    test_in: Tensor
    groups: tuple[slice, ...]
    update: tuple[Tensor, Tensor]
    update_with_mean: tuple[Tensor, Tensor]
    residual: tuple[Tensor, Tensor]

    @cached_property
    def targets(self) -> tuple[Tensor, list[tuple[slice, list[int]]], int]:
        """The regressions of this direction, the same for every candidate.

        Their targets ``train target`` (the update, the update with its mean and the residual, by column), zero where a
        row takes no part; which rows are left out of which targets; and how many columns each of the three kinds has.
        """
        columns = self.train_in.shape[1]
        residual = self.residual[0][:, None].expand(-1, columns)
        targets = torch.cat([self.update[0], self.update_with_mean[0], residual], dim=1)
        left_out = [(rows, [1 + g, columns + 1 + g, 2 * columns + 1 + g]) for g, rows in enumerate(self.groups)]
        return targets * self.train_in.repeat(1, 3), left_out, columns

    def without_replicates(self) -> Direction:
        """Return the direction on the whole halves alone."""
        return self.on_first(self.train, self.test)

    def on_first(self, train: slice, test: slice) -> Direction:
        """Return the direction on the first rows of either half, without replicates.

        Args:
            train: Where the first rows to learn from stand, and so how many they are.
            test: Where the first rows to judge on stand.

        Returns:
            The direction; its update is that of the whole half.
        """
        learned, judged = train.stop - train.start, test.stop - test.start
        return Direction(
            train,
            test,
            self.train_in[:learned, :1],
            self.test_in[:judged, :1],
            (),
            (self.update[0][:learned, :1], self.update[1][:judged, :1]),
            (self.update_with_mean[0][:learned, :1], self.update_with_mean[1][:judged, :1]),
            (self.residual[0][:learned], self.residual[1][:judged]),
        )


@dataclass(frozen=True)
class Problem:
    """Both directions of cross-fitting, the ridge, and how many groups the jackknife leaves out one at a time.

    ``mean_energy`` is the fraction, between 0 and 1, of the update's squared size that its mean per probe makes, on
    the rows the mean is taken over (the training halves).
    """

    directions: tuple[Direction, ...]
    num_groups: int
    ridge: float
    mean_energy: float

    @classmethod
    def of(cls, target: Kernel, rows: Rows, halves: tuple[range, range], *, num_groups: int, ridge: float) -> Problem:
        """Set up the problem for fine-tuning's kernel ``target`` and two halves of the examples (index ranges).

        Args:
            target: Fine-tuning's kernel.
            rows: What the kernel's rows are: example and probe of each.
            halves: Index ranges of the examples in either half.
            num_groups: Groups of examples that the jackknife leaves out one at a time.
            ridge: Penalty of the regressions, relative to a kernel of unit mean diagonal.

        Returns:
            The problem; it holds no kernel of a site.
        """
        groups = _jackknife_groups(halves, rows.num_examples, num_groups)
        directions, removed, energy = [], 0.0, 0.0
        for train_examples, test_examples in (halves, halves[::-1]):
            train, test = (rows.of_examples(chosen) for chosen in (train_examples, test_examples))
            in_column = torch.ones(rows.num_examples, 1 + num_groups, dtype=torch.float64)
            for g in range(num_groups):
                in_column[groups == g, 1 + g] = 0
            weights = torch.zeros_like(in_column)
            chosen = slice(train_examples.start, train_examples.stop)
            weights[chosen] = in_column[chosen]
            update = target.cross.double() @ weights  # row column
            train_in, test_in = in_column[rows.example[train]], in_column[rows.example[test]]
            mean = group_means(update[train], train_in, rows.group[train], rows.group)
            centred = update - mean
            removed += float((mean[train, 0] ** 2).sum())
            energy += float((update[train, 0] ** 2).sum())
            residual = rows.residual.double()
            directions.append(
                Direction(
                    train,
                    test,
                    train_in,
                    test_in,
                    tuple(_run_of_zeros(train_in[:, 1 + g]) for g in range(num_groups)),
                    (centred[train], centred[test]),
                    (update[train], update[test]),
                    (residual[train], residual[test]),
                )
            )
        return cls(tuple(directions), num_groups, ridge, removed / max(energy, 1e-300))

    def without_replicates(self) -> Problem:
        """Return the problem of the whole sample alone, without the groups that the jackknife leaves out."""
        return replace(self, directions=tuple(way.without_replicates() for way in self.directions), num_groups=0)

    def on_first(self, of: Sequence[slice]) -> Problem:
        """Return the problem on the first rows of both halves, without replicates; they stand side by side there.

        What is to be learned stays fine-tuning's update from the whole of a half.

        Args:
            of: The rows of either half that take part, the half that stands first in front.

        Returns:
            The smaller problem.
        """
        first, second = (rows.stop - rows.start for rows in of)
        halves = slice(0, first), slice(first, first + second)
        where = {rows.start: half for rows, half in zip(of, halves, strict=True)}
        ways = (way.on_first(where[way.train.start], where[way.test.start]) for way in self.directions)
        return replace(self, directions=tuple(ways), num_groups=0)


@dataclass(frozen=True)
class Predictions:
    """What a kernel predicts in one direction: ``train column`` or ``test column`` per target.

    ``residual_weights`` (``train column``) are the dual weights of the regression on the residual.
    """

    update: Tensor
    update_with_mean: Tensor
    residual: Tensor
    update_in_sample: Tensor
    residual_weights: Tensor


def predict(kernel: Tensor, direction: Direction, ridge: float) -> Predictions:
    """Fit a kernel (``row row``) on the training half and predict the other, in the kernel's precision.

    Args:
        kernel: Kernel of a candidate ``(row row)``.
        direction: Which rows are learned from and which are predicted.
        ridge: Penalty of the regression, in the kernel's units.

    Returns:
        Predictions of the update, of the update with its mean and of the residual, ``(row column)`` each, and dual
        weights.

    Cost: one factorisation of the training rows, whatever the number of columns.
    """
    train, test = direction.train, direction.test
    fit = RidgeFit.of(kernel[train, train], ridge)
    present, left_out, columns = direction.targets
    weights = fit.weights_without(present.to(kernel), left_out)
    across = (kernel[test, train] @ weights).double()
    within = (kernel[train, train] @ weights[:, :columns]).double()
    update, with_mean, own = across.split(columns, dim=1)
    return Predictions(update, with_mean, own, within, weights[:, 2 * columns :].double())


def predict_by_features(features: Tensor, direction: Direction, ridge: float) -> Predictions:
    """Return what :func:`predict` returns for the kernel ``features @ features.T``, by a regression on the features.

    Args:
        features: ``row feature``, such that the kernel has unit mean diagonal.
        direction: Which rows are learned from and which are predicted.
        ridge: Penalty of the regression.

    Returns:
        The same as of the kernel, up to rounding.

    Cost: one factorisation of ``feature feature`` for the whole and one per left-out group.
    """
    train, test = features[direction.train], features[direction.test]
    present, left_out, columns = direction.targets
    present = present.to(features)
    form = train.T @ train
    form.diagonal().add_(ridge)
    towards = train.T @ present
    found = torch.cholesky_solve(towards, torch.linalg.cholesky(form))
    for rows, some in runs_of(left_out):
        gone = train[rows]
        without = torch.cholesky_solve(towards.T[some].mT, torch.linalg.cholesky(form - gone.mT @ gone))
        found.T[some] = without.mT
    within = train @ found
    # The fit of a ridge regression is the target less the ridge times the dual weights.
    weights = (present - within)[:, 2 * columns :] / ridge
    for g, left in enumerate(direction.groups):
        weights[left, 1 + g] = 0
    update, with_mean, own = (test @ found).split(columns, dim=1)
    return Predictions(update, with_mean, own, within[:, :columns], weights)


def _jackknife_groups(halves: tuple[range, range], num_examples: int, num_groups: int) -> Tensor:
    groups = torch.full((num_examples,), -1)
    for half in halves:
        groups[half.start : half.stop] = torch.arange(len(half)) * num_groups // max(len(half), 1)
    return groups


def _run_of_zeros(column: Tensor) -> slice:
    """Return where a column is zero; groups are consecutive examples, so that is one run."""
    zero = (column == 0).nonzero()[:, 0]
    return slice(int(zero[0]), int(zero[-1]) + 1)


def group_means(values: Tensor, included: Tensor, groups: Tensor, wanted: Tensor) -> Tensor:
    """Return, for every row of ``wanted`` groups, the mean of that group's included training values, by column.

    Args:
        values: Training values ``(train column)``.
        included: 1 where a training value takes part, else 0 ``(train column)``.
        groups: Group of each training row ``(train)``.
        wanted: Group of each row of the result ``(row)``.

    Returns:
        Means ``(row column)``; 0 where a group has no included value.

    Example:
        >>> values, groups = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> group_means(values, torch.ones(3, 1), groups, torch.tensor([1, 0])).tolist()
        [[5.0], [2.0]]
    """
    names, place = torch.unique(torch.cat([groups, wanted]), return_inverse=True)
    train_place, out_place = place[: len(groups)], place[len(groups) :]
    sums = torch.zeros(len(names), values.shape[1], dtype=values.dtype).index_add(0, train_place, values * included)
    counts = torch.zeros_like(sums).index_add(0, train_place, included)
    return (sums / counts.clamp_min(1))[out_place]
