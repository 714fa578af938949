"""The default score: which part of fine-tuning's first-order update an edit learns from half the prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.analysis.scoring.kernels import Rows
from steerscope.analysis.scoring.problem import Problem, predict
from steerscope.analysis.scoring.scores.candidate import Candidate, is_zero, r_squared
from steerscope.analysis.scoring.scores.score import Unit, register_score
from steerscope.equivalence.kernels import ridge_weights
from steerscope.finite import require_finite

_SOURCE = "this project; the kernel view of training: arXiv 1806.07572, 2210.05643"


@register_score(
    label="learnable share",
    meaning="the share of fine-tuning's first-order update that the edit learns from one half of the prompts, measured "
    "on the other half, without the shift that all prompts have in common",
    unit=Unit.SHARE,
    cost="two factorisations of half the rows",
    source=_SOURCE,
)
def learnable_share(candidate: Candidate) -> Tensor:
    """Held-out R squared of kernel ridge regression: `1 - sum (u - v)^2 / sum u^2`.

    ``u`` is one gradient step of fine-tuning on one half of the prompts, ``K_FT r``, with its mean per probe over that
    half removed; ``v`` what regression with the candidate's kernel (unit mean diagonal, ridge 1), fitted on that half,
    predicts on the other; both halves take both parts. At most 1; negative where the prediction is worse than none.
    First order in the weights and in the edit: it says what is learnable from so many prompts, not what is reachable.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    return r_squared([(found.update, way.update[1], way.test_in) for found, way in candidate.predictions])


def share_of(kernel: Tensor, problem: Problem) -> Tensor:
    """Return the learnable share of any kernel ``row row``, with replicates ``column``; 0 of a zero kernel.

    Args:
        kernel: Any kernel ``(row row)``; it is scaled to unit mean diagonal here.
        problem: The held-out problem.

    Returns:
        The whole sample, then one entry per left-out group ``(column)``.
    """
    if is_zero(kernel):
        return torch.zeros(1 + problem.num_groups, dtype=torch.float64)
    parts, scale = [], kernel.diagonal().mean()
    for way in problem.directions:
        parts.append((predict(kernel / scale, way, problem.ridge).update, way.update[1], way.test_in))
    return r_squared(parts)


def quick_share(kernel: Tensor, problem: Problem, learn_from: tuple[int, Rows] | None = None) -> float:
    """Return the learnable share without replicates, in the kernel's own precision.

    Args:
        kernel: ``row row``, any scale; what is above the diagonal is not read.
        problem: The held-out problem.
        learn_from: ``(n, rows)``: fit on the first n prompts of each half only; the update to learn stays
            that of the whole half.

    Returns:
        One number, at most 1; 0 of a zero kernel.
    """
    return float(quick_shares(kernel[None], problem, learn_from)[0])


def quick_shares(kernels: Tensor, problem: Problem, learn_from: tuple[int, Rows] | None = None) -> Tensor:
    """Return :func:`quick_share` of several kernels at once: of small ones the calls cost more than the numbers.

    Args:
        kernels: ``kernel row row``, as there.
        problem: The held-out problem.
        learn_from: As there.

    Returns:
        ``kernel``, in float64.
    """
    scale = kernels.diagonal(dim1=1, dim2=2).mean(1)
    require_finite("a kernel", scale)
    # A ridge in units of the mean diagonal is a kernel divided by it: predictions are the same. Zero predicts nothing.
    ridge = problem.ridge * torch.where(scale > 0, scale, 1)
    error, size = torch.zeros(len(kernels), dtype=torch.float64), 0.0
    for way in problem.directions:
        train, update = way.train, way.update[0][:, 0].to(kernels)
        if learn_from is not None:
            count, rows = learn_from
            train = rows.of_examples(rows.examples_of(train)[:count])
            update = update[: train.stop - train.start]
        truth = way.update[1][:, 0].to(kernels)
        weights = ridge_weights(kernels[:, train, train], update[:, None], ridge)
        across = kernels[:, way.test, train] if way.test.start >= train.stop else kernels[:, train, way.test].mT
        error += (truth - (across @ weights)[..., 0]).pow(2).sum(1).double()
        size += float(truth.pow(2).sum())
    return 1 - error / max(size, 1e-300)
