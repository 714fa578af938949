"""Scores computed from a site's tangent kernel and fine-tuning's, with jackknife replicates.

Every score comes as a vector: entry 0 from all prompts, entry 1 + g with group g of the prompts left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.analysis.kernels import Kernel, Rows
from steerscope.analysis.problem import Predictions, Problem, predict
from steerscope.finite import require_finite

KERNEL_SCORES = (
    "learnable_share",
    "learnable_share_with_mean",
    "in_sample_share",
    "own_direction",
    "predicted_loss",
    "predicted_loss_bounded",
    "alignment",
    "gradient_capture",
    "gradient_norm",
)


# An edit at most so long, relative to what it is added to, is believed by ``predicted_loss_bounded``: beyond it norms
# and gates answer with something else than their derivative. Chosen in docs/validation_plan_2.md.
LONGEST_EDIT = 0.5


def kernel_scores(
    kernel: Kernel,
    target: Kernel,
    problem: Problem,
    rows: Rows,
    curvature: Tensor,
    squared_length: Tensor,
) -> dict[str, Tensor]:
    """Return every kernel score of one candidate.

    Args:
        kernel: The candidate's kernel (or the sum of several sites').
        target: Fine-tuning's kernel.
        problem: The held-out problem made from ``target``.
        rows: What the kernels' rows are.
        curvature: ``example probe probe``: the softmax's Fisher matrices.
        squared_length: ``row row``: its quadratic form in a regression's dual weights is the square of the edit's
            length over that of what it is added to (:func:`relative_length`).

    Returns:
        Per score ``column``: all prompts, then each group left out. A kernel that is zero scores zero.

    Cost: two factorisations of half the rows.
    """
    columns = 1 + problem.num_groups
    if _is_zero(kernel.probe):
        return {name: torch.zeros(columns, dtype=torch.float64) for name in KERNEL_SCORES}
    unit = kernel.probe / kernel.scale
    predictions = [predict(unit, direction, problem.ridge) for direction in problem.directions]
    return {
        **_shares(predictions, problem),
        **_own_regression(predictions, problem, rows, curvature, squared_length),
        **_whole_kernel(kernel, target, problem, rows),
    }


def learnable_share(kernel: Tensor, problem: Problem) -> Tensor:
    """Return the learnable share of a kernel ``row row``: R squared on held-out prompts, both ways pooled.

    The share of fine-tuning's first-order update (its mean per probe removed) that kernel ridge regression with
    this kernel recovers from the other half of the prompts. At most 1; negative where the prediction is worse
    than none. First-order in both the weights and the edit; it says what is learnable from so many prompts, not
    what is reachable. Source: issue table in docs/scores.md; theory.md 3(f).
    """
    if _is_zero(kernel):
        return torch.zeros(1 + problem.num_groups, dtype=torch.float64)
    unit = kernel / kernel.diagonal().mean()
    predictions = [predict(unit, direction, problem.ridge) for direction in problem.directions]
    return _shares(predictions, problem)["learnable_share"]


def quick_share(kernel: Tensor, problem: Problem, learn_from: tuple[int, Rows] | None = None) -> float:
    """Return the learnable share without replicates, in the kernel's own precision.

    Args:
        kernel: ``row row``, any scale.
        problem: The held-out problem.
        learn_from: ``(n, rows)``: fit on the first n prompts of each half only; the update to learn stays
            that of the whole half.
    """
    if _is_zero(kernel):
        return 0.0
    unit = kernel / kernel.diagonal().mean()
    error = size = 0.0
    for direction in problem.directions:
        train, update = direction.train, direction.update[0][:, 0].to(kernel)
        if learn_from is not None:
            count, rows = learn_from
            first = int(rows.example[train.start])
            train = rows.of_examples(range(first, first + count))
            update = update[: train.stop - train.start]
        truth = direction.update[1][:, 0].to(kernel)
        block = unit[train, train] + problem.ridge * torch.eye(len(update), dtype=unit.dtype)
        weights = torch.cholesky_solve(update[:, None], torch.linalg.cholesky(block))[:, 0]
        error += float((truth - unit[direction.test, train] @ weights).pow(2).sum())
        size += float(truth.pow(2).sum())
    return 1 - error / max(size, 1e-300)


def _is_zero(kernel: Tensor) -> bool:
    """Whether a kernel ``row row`` is zero.

    Raises:
        InputError: It is NaN or infinite.
    """
    require_finite("a kernel", kernel.diagonal())
    return float(kernel.diagonal().mean()) <= 0


def _shares(predictions: list[Predictions], problem: Problem) -> dict[str, Tensor]:
    pairs = list(zip(predictions, problem.directions, strict=True))
    return {
        "learnable_share": _r_squared([(p.update, d.update[1], d.test_in) for p, d in pairs]),
        "learnable_share_with_mean": _r_squared(
            [(p.update_with_mean, d.update_with_mean[1], d.test_in) for p, d in pairs]
        ),
        "in_sample_share": _r_squared([(p.update_in_sample, d.update[0], d.train_in) for p, d in pairs]),
    }


def _r_squared(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return 1 - (squared error) / (squared target), pooled over directions, per column."""
    error = torch.stack([((truth - predicted) ** 2 * used).sum(0) for predicted, truth, used in parts]).sum(0)
    size = torch.stack([(truth**2 * used).sum(0) for _, truth, used in parts]).sum(0)
    return 1 - error / size.clamp_min(1e-300)


def relative_length(kernel: Tensor, read_length: float, held_length: float) -> Tensor:
    """Return the ``squared_length`` of an edit whose kernel ``row row`` this is.

    With dual weights ``b`` of the kernel at unit scale, ``c`` that scale, the edit's matrix has the squared norm
    ``b^T K b / c^2``, and moves a token that reads ``x / s`` by at most that norm times ``|x / s|``.

    Args:
        kernel: Not scaled.
        read_length: Typical length of what the edit reads, as its features are scaled; 1 for a fixed vector.
        held_length: Typical length of what the edit is added to.
    """
    if _is_zero(kernel):
        return torch.zeros_like(kernel)
    scale = float(kernel.diagonal().mean())
    return kernel / scale * (read_length / max(held_length, 1e-30)) ** 2 / scale


def _own_regression(
    predictions: list[Predictions], problem: Problem, rows: Rows, curvature: Tensor, squared_length: Tensor
) -> dict[str, Tensor]:
    """Scores of the site's own regression on the loss residual, with no fine-tuning kernel in it."""
    along, length, size, gain, bounded, count = torch.zeros(6, 1 + problem.num_groups, dtype=torch.float64).unbind()
    for predicted, direction in zip(predictions, problem.directions, strict=True):
        update, truth, used = predicted.residual, direction.residual[1][:, None], direction.test_in
        along = along + (update * truth * used).sum(0)
        length = length + (update**2 * used).sum(0)
        size = size + (truth**2 * used).sum(0)
        # Second-order change of the log-likelihood: <r, u> - u C u / 2, example by example.
        dense = torch.zeros(rows.num_examples, curvature.shape[1], update.shape[1], dtype=torch.float64)
        dense[rows.example[direction.test], rows.probe[direction.test]] = update * used
        bent = torch.einsum("npc,npq,nqc->c", dense, curvature, dense)
        straight = (update * truth * used).sum(0)
        gain = gain + straight - bent / 2
        # The same edit, shortened until it is short enough to be believed.
        weights, train = predicted.residual_weights, direction.train
        edit = (weights * (squared_length[train, train].double() @ weights)).sum(0).clamp_min(1e-300).sqrt()
        kept = (LONGEST_EDIT / edit).clamp_max(1)
        bounded = bounded + kept * straight - kept**2 * bent / 2
        seen = torch.zeros(rows.num_examples, update.shape[1], dtype=torch.float64)
        seen[rows.example[direction.test]] = used
        count = count + seen.sum(0)
    return {
        "own_direction": along / (length * size).sqrt().clamp_min(1e-300),
        "predicted_loss": gain / count,
        "predicted_loss_bounded": bounded / count,
    }


def _whole_kernel(kernel: Kernel, target: Kernel, problem: Problem, rows: Rows) -> dict[str, Tensor]:
    """Scores that are sums over pairs of prompts; leaving a group out takes its pairs away."""
    included = _examples_in(problem, rows)  # example column
    by_row = included[rows.example].to(kernel.probe)

    def over_rows(first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum("rc,rc->c", by_row.double(), ((first * second) @ by_row).double())

    both = over_rows(kernel.probe, target.probe)
    alone = over_rows(kernel.probe, kernel.probe)
    other = over_rows(target.probe, target.probe)
    loss = torch.einsum("ec,ec->c", included, kernel.loss.double() @ included)
    capture_here, capture_there = torch.zeros(2, 1 + problem.num_groups, dtype=torch.float64).unbind()
    for direction in problem.directions:
        train = torch.zeros(rows.num_examples, 1, dtype=torch.float64)
        train[rows.example[direction.train]] = 1.0
        test = torch.zeros_like(train)
        test[rows.example[direction.test]] = 1.0
        weights = included * train
        capture_here = capture_here + ((kernel.loss.double() @ weights) * included * test).sum(0)
        capture_there = capture_there + ((target.loss.double() @ weights) * included * test).sum(0)
    return {
        "alignment": both / (alone * other).sqrt().clamp_min(1e-300),
        "gradient_capture": capture_here / torch.where(capture_there == 0, 1.0, capture_there),
        "gradient_norm": loss.clamp_min(0).sqrt() / included.sum(0),
    }


def _examples_in(problem: Problem, rows: Rows) -> Tensor:
    included = torch.zeros(rows.num_examples, 1 + problem.num_groups, dtype=torch.float64)
    for direction in problem.directions:
        included[rows.example[direction.train]] = direction.train_in
    return included
