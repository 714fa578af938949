r"""P20: how well a post-block edit can imitate a post-MLP one on data, and the other way round. Second moments decide.

On a data set no projection separates ``I'`` and ``y`` (P18), and what is left is least squares. With the covariances S
of I', Y of y and ``C = E[I' y^T]``, ``h = I' + y``, the best linear map of h to ``A y`` leaves

.. math:: E|A y - B h|^2 = \mathrm{tr}(A\,\Sigma_{y|h}\,A^\top), \qquad
    \Sigma_{y|h} = Y - (Y + C^\top)(S + Y + C + C^\top)^{-1}(Y + C)

and the best map of y to ``A h`` leaves :math:`\mathrm{tr}(A\,\Sigma_{I'|y}\,A^\top)`,
:math:`\Sigma_{I'|y} = S - C Y^{-1} C^\top`. These are identities in second moments: nothing is Gaussian, and nothing
else of the distribution enters.

Which imitation is the better one? The two have different targets, so errors are compared relative to each target's
power. Without correlation (C = 0) the first is the parallel sum ``S:Y = S (S + Y)^{-1} Y``, below S and below Y, and
the post-block edit imitates at least as well as the other: the parallel sum is concave, so
:math:`\mathrm{tr}(A(S{:}Y)A^\top) \le s y / (s + y)` with ``s``, ``y`` the traces of ``A S A^T`` and ``A Y A^T``, which
is the converse's relative error ``s / (s + y)`` times y. In one dimension both are ``1 - rho^2``. With correlation the
order can be either: where the MLP cancels what the skip carries, ``h`` says nothing of y. In absolute size the two
errors of one dimension are as ``|y|^2`` to ``|h|^2``, which is no matter of expressivity. What it is on the subject's
own tokens is measured, held out, and stated as a limit beside the verdict.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import skip_and_mlp
from steerscope.equivalence.propositions.subject import Subject

# Least squares on tokens against formulas in their covariances: rounding times the covariances' condition number.
MOMENTS = 1e-6
# The same between two formulas in well-conditioned covariances.
FORMULA = 1e-9
# Eigenvalues of a difference of covariances, relative to the largest eigenvalue, up to rounding.
PSD = -1e-12
# Tokens per direction of the stream: with fewer a regression fits what it should leave.
TOKENS_PER_DIRECTION = 5
# Tokens whose stream is longer than this many medians are left out: a few of them would be all that counts.
OUTLIER = 4.0

# --- formulas under test ---


def parallel_sum(left: Tensor, right: Tensor) -> Tensor:
    """Return ``S:Y = S (S + Y)^{-1} Y`` of two covariances (d, d).

    Args:
        left: S, ``(d, d)``.
        right: Y, ``(d, d)``.

    Returns:
        ``(d, d)``, made symmetric.
    """
    both = left @ torch.linalg.solve(left + right, right)
    return (both + both.T) / 2


def skip_given_mlp(skip: Tensor, mlp: Tensor, cross: Tensor) -> Tensor:
    """Return the covariance of I', and so of ``h = I' + y``, given y; ``cross = E[I' y^T]``. A Schur complement.

    Args:
        skip: Covariance of ``I'``, ``(d, d)``.
        mlp: Covariance of ``y``, ``(d, d)``.
        cross: ``E[I' y^T]``, ``(d, d)``.

    Returns:
        ``(d, d)``; ``skip`` without correlation.
    """
    return skip - cross @ torch.linalg.solve(mlp, cross.T)


def best_projection(skip: Tensor, mlp: Tensor) -> Tensor:
    """Return ``P* = Y (S + Y)^{-1}`` for uncorrelated covariances S, Y (d, d).

    Args:
        skip: S, the covariance of what the skip carries, ``(d, d)``.
        mlp: Y, the covariance of what the MLP writes, ``(d, d)``.

    Returns:
        ``(d, d)``: the linear map that predicts y from ``I' + y`` with the least squared error.
    """
    return torch.linalg.solve(skip + mlp, mlp).T


def conditional_covariance(skip: Tensor, mlp: Tensor, cross: Tensor) -> Tensor:
    """Return the covariance of y given ``h = I' + y``; ``cross = E[I' y^T]``. A Schur complement.

    Without correlation it is :func:`parallel_sum`.

    Args:
        skip: Covariance of ``I'``, ``(d, d)``.
        mlp: Covariance of ``y``, ``(d, d)``.
        cross: ``E[I' y^T]``, ``(d, d)``.

    Returns:
        ``(d, d)``.
    """
    of_sum = skip + mlp + cross + cross.T
    y_with_sum = mlp + cross.T  # E[y h^T]
    return mlp - y_with_sum @ torch.linalg.solve(of_sum, y_with_sum.T)


class Moments(NamedTuple):
    """Second moments about the mean of what skips the MLP and of what it writes: S, Y and ``C = E[I' y^T]``."""

    skip: Tensor
    mlp: Tensor
    cross: Tensor

    @property
    def whole(self) -> Tensor:
        """Covariance of ``h = I' + y``."""
        return self.skip + self.mlp + self.cross + self.cross.T


def relative_errors(moments: Moments, edit: Tensor) -> tuple[float, float]:
    """Return what the best maps leave over, each relative to its target: of h to ``A y``, and of y to ``A h``.

    Args:
        moments: Second moments.
        edit: A, ``(k, d)``.

    Returns:
        Post-block imitating post-MLP, and the converse; from 0 to 1.
    """
    imitation = _power(edit, conditional_covariance(*moments)) / _power(edit, moments.mlp)
    return imitation, _power(edit, skip_given_mlp(*moments)) / _power(edit, moments.whole)


def _power(edit: Tensor, covariance: Tensor) -> float:
    return float(torch.trace(edit @ covariance @ edit.T))


# --- check ---


class _Tokens(NamedTuple):
    """Centred ``I'`` and ``y`` of the subject's tokens, ``(token, k)``, and which of them are for fitting."""

    skip: Tensor
    mlp: Tensor
    fitted: Tensor
    left_out: int

    def moments(self) -> Moments:
        count = len(self.skip)
        return Moments(self.skip.T @ self.skip / count, self.mlp.T @ self.mlp / count, self.skip.T @ self.mlp / count)


def _tokens(subject: Subject) -> _Tokens:
    """Return the subject's many tokens, in all directions or in the leading ones that so many tokens can speak of."""
    skip, mlp = skip_and_mlp(subject.many)
    sequence = torch.arange(len(skip))[:, None].expand(skip.shape[:2]).flatten()
    skip, mlp = skip.flatten(0, 1), mlp.flatten(0, 1)
    lengths = (skip + mlp).norm(dim=1)
    kept = lengths <= OUTLIER * lengths.median()
    skip, mlp, sequence = skip[kept], mlp[kept], sequence[kept]
    skip, mlp = skip - skip.mean(0), mlp - mlp.mean(0)
    directions = min(skip.shape[1], max(1, len(skip) // TOKENS_PER_DIRECTION))
    if directions < skip.shape[1]:
        leading = torch.linalg.svd(skip + mlp, full_matrices=False).Vh[:directions]
        skip, mlp = skip @ leading.T, mlp @ leading.T
    return _Tokens(skip, mlp, sequence % 2 == 0, int((~kept).sum()))


def _left(read: Tensor, target: Tensor) -> float:
    """Return the mean squared error of least squares from ``read`` to ``target``, both ``(token, k)``."""
    found = torch.linalg.lstsq(read, target).solution
    return float((target - read @ found).square().sum()) / len(read)


def _held_out(read: Tensor, target: Tensor, fitted: Tensor) -> float:
    """Return the relative error on the tokens that were not fitted, for a linear map with a bias."""
    centre, aim = read[fitted].mean(0), target[fitted].mean(0)
    found = torch.linalg.lstsq(read[fitted] - centre, target[fitted] - aim).solution
    wanted = target[~fitted] - aim
    return float((wanted - (read[~fitted] - centre) @ found).square().sum() / wanted.square().sum())


def _diagonal(*moments: tuple[float, ...]) -> Moments:
    return Moments(*(torch.diag(torch.tensor(values, dtype=torch.float64)) for values in moments))


# y_1 is cancelled by the skip but for a hundredth of its power, y_2 is a tenth of what the skip carries with it.
CANCELLING = ((1.01, 10.0), (1.0, 0.1), (-1.0, 1.0))
# One dimension, |I'| = |y|, correlation -0.9.
OPPOSED = ((1.0,), (1.0,), (-0.9,))


def check_moments(subject: Subject) -> Evidence:
    """P20: both imitations on tokens against formulas in second moments; which of them is the better one."""
    tokens = _tokens(subject)
    skip, mlp = tokens.skip, tokens.mlp
    count, width = skip.shape
    if count < 2 * width:
        return Evidence(inapplicable=f"{count} tokens are too few for second moments in {width} directions")
    moments = tokens.moments()
    apart = moments._replace(cross=torch.zeros_like(moments.cross))
    edit = subject.draw(width, width, salt=441) / width**0.5
    imitation, converse = _left(skip + mlp, mlp @ edit.T), _left(mlp, (skip + mlp) @ edit.T)
    between = parallel_sum(moments.skip, moments.mlp)

    def ratio(name: str, measured: float, formula: float, tolerance: float = MOMENTS) -> Measurement:
        return Measurement(name, measured / formula, 1 - tolerance, 1 + tolerance)

    def least(difference: Tensor, whole: Tensor) -> float:
        return float(torch.linalg.eigvalsh(difference)[0] / torch.linalg.eigvalsh(whole)[-1])

    def projected(matrix: Tensor) -> float:
        """Return the error of ``A P h`` for parts without correlation: ``P - I`` acts on y, P on I'."""
        off = matrix - torch.eye(width, dtype=matrix.dtype)
        return _power(edit, off @ moments.mlp @ off.T + matrix @ moments.skip @ matrix.T)

    first, second = relative_errors(apart, edit)
    cancelled = relative_errors(_diagonal(*CANCELLING), torch.eye(2, dtype=torch.float64))
    opposed = _diagonal(*OPPOSED)
    seen = [_held_out(*pair, tokens.fitted) for pair in ((skip + mlp, mlp), (mlp, skip + mlp))]
    correlation = float(torch.trace(moments.cross) / (torch.trace(moments.skip) * torch.trace(moments.mlp)).sqrt())
    return Evidence(
        claim=(
            ratio(
                "tokens: error of the best map of h to A y, over its formula",
                imitation,
                _power(edit, conditional_covariance(*moments)),
            ),
            ratio(
                "tokens: error of the best map of y to A h, over its formula",
                converse,
                _power(edit, skip_given_mlp(*moments)),
            ),
            ratio(
                "no correlation: error of A P* over tr(A (S:Y) A^T)",
                projected(best_projection(moments.skip, moments.mlp)),
                _power(edit, between),
                FORMULA,
            ),
            ratio(
                "no correlation: the conditional covariance over S:Y, traces",
                _power(edit, conditional_covariance(*apart)),
                _power(edit, between),
                FORMULA,
            ),
            Measurement("least eigenvalue of S - S:Y, relative", least(moments.skip - between, moments.skip), low=PSD),
            Measurement("least eigenvalue of Y - S:Y, relative", least(moments.mlp - between, moments.mlp), low=PSD),
            Measurement(
                "no correlation: relative error of the imitation over the converse's", first / second, high=1 + FORMULA
            ),
            Measurement(
                "a correlated example: relative error of the imitation over the converse's",
                cancelled[0] / cancelled[1],
                low=1.0,
                of_subject=False,
            ),
            Measurement(
                "one dimension, correlation -0.9: error of the imitation over the converse's, |y|^2 / |h|^2",
                float(conditional_covariance(*opposed) / skip_given_mlp(*opposed)),
                low=5 * (1 - FORMULA),
                high=5 * (1 + FORMULA),
                of_subject=False,
            ),
        ),
        controls=(
            ratio("tokens: error of the best map of h to A y over tr(A (S:Y) A^T)", imitation, _power(edit, between)),
            ratio("tokens: error of the best map of y to A h over tr(A S A^T)", converse, _power(edit, moments.skip)),
            ratio(
                "no correlation: error with S and Y exchanged in P*",
                projected(best_projection(moments.mlp, moments.skip)),
                _power(edit, between),
                FORMULA,
            ),
        ),
        limit=(
            f"on these tokens, held out, relative to the target: post-block for post-MLP {seen[0]:.2g}, "
            f"the converse {seen[1]:.2g}"
        ),
        notes=(
            f"layer {subject.layer}, {count} tokens in {width} directions"
            + (f", {tokens.left_out} with far longer streams left out" if tokens.left_out else "")
            + f"; correlation of I' and y {correlation:.2g} (of traces)",
            "fitted relative errors {:.3g} and {:.3g}; ".format(*relative_errors(moments, edit))
            + f"without the correlation they would be {first:.3g} and {second:.3g}",
        ),
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        20,
        "post-block against post-MLP",
        "imitation by second moments",
        "The best linear post-block imitation of A y leaves tr(A Cov(y|h) A^T), the converse tr(A Cov(I'|y) A^T). "
        "Relative to their targets the first is at most the second if I' and y are uncorrelated; else either may be.",
        "Second moments alone, of any distribution; linear maps shared by all tokens.",
        Source.OURS,
        check_moments,
    ),
)
