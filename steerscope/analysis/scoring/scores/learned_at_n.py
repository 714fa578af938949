"""How much of the loss residual an edit learns from as many examples as training will see."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Needs, Unit, register_score
from steerscope.analysis.scoring.spectrum import chosen_ridge


@register_score(
    label="learned at n",
    meaning="the share of the loss residual that the edit would learn from as many examples as training sees, "
    "extrapolated from its kernel's spectrum",
    unit=Unit.SHARE,
    needs=Needs.SPECTRUM,
    cost="shared with the converged share",
    source="this project; the theory of kernel regression: arXiv 2002.02561, 2110.03922",
)
def learned_at_n(candidate: Candidate) -> Tensor:
    """`1 - sum e C e / sum r C r`, `e` what is left of `r`: mode `i` shrinks to `kappa / (lambda_i + kappa)` of itself.

    ``lambda_i`` are the eigenvalues of the site's kernel of unit scale over the rows of one half, divided by their
    number; ``kappa`` solves ``n = sum lambda_i / (lambda_i + kappa) + ridge / kappa``, with ``n`` the examples that
    training sees (``num_training``) times rows per prompt and the ridge that leaving one prompt out chooses for ``r``;
    ``C`` is the softmax's Fisher matrix. Both halves are pooled. Modes are those of the half: more examples than it has
    bring no new ones. Jackknife columns leave prompts out of the sums, not out of the modes.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    problem, rows, curvature = candidate.problem, candidate.rows, candidate.curvature.double()
    residuals = [way.residual[0] for way in problem.directions]
    ridge = chosen_ridge(candidate.spectra, problem, rows, residuals)
    left, whole = candidate.zeros(), candidate.zeros()
    for spectrum, way, residual in zip(candidate.spectra, problem.directions, residuals, strict=True):
        example, values = rows.example[way.train], spectrum.values.double() / len(residual)
        count = candidate.num_training * len(residual) / len(torch.unique(example))
        kappa = effective_ridge(values, ridge, count)
        vectors = spectrum.vectors.double()
        kept = vectors @ (kappa / (values + kappa) * (vectors.T @ residual))
        sizes = []
        for part in (kept, residual):
            dense = torch.zeros(curvature.shape[:2], dtype=torch.float64)
            dense[example, rows.probe[way.train]] = part
            sizes.append(torch.einsum("np,npq,nq->n", dense, curvature, dense) @ candidate.included)
        left, whole = left + sizes[0], whole + sizes[1]
    return 1 - left / whole.clamp_min(1e-300)


def effective_ridge(values: Tensor, ridge: float, count: float) -> float:
    """Return the ``kappa`` that solves ``count = sum values / (values + kappa) + ridge / kappa``.

    Args:
        values: Eigenvalues of the kernel as an operator (those of a Gram matrix over its number of rows).
        ridge: Positive.
        count: Number of training rows, positive.

    Returns:
        A positive number.
    """
    # The left side falls with kappa; below the first bound it is larger than count, above the second smaller.
    low, high = math.log(ridge / (count + len(values)) / 2), math.log((ridge + float(values.sum())) / count * 2)
    for _ in range(100):
        middle = (low + high) / 2
        kappa = math.exp(middle)
        too_many = float((values / (values + kappa)).sum()) + ridge / kappa > count
        low, high = (middle, high) if too_many else (low, middle)
    return math.exp((low + high) / 2)
