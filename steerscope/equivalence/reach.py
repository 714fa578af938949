r"""How much of an update's shifts one edit for all tokens can make: formulas of tensors, no model.

An edit adds :math:`A x_t + b` where a map adds :math:`\Delta W m_t`, at every token t of a data set with the same A and
b. Over its n tokens the shifts of all updates are :math:`R^d \otimes row(M)`, those of all edits
:math:`R^d \otimes row(X)`, with M and X the matrices of what the two read, ``token channel``. Everything here is about
these two spaces: what is left of one beside the other on average (P43, P45), direction by direction (P44), and how
many of their dimensions rise above noise (P44).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

# Directions of a second moment below this part of the largest are no directions.
RANK_CUT = 1e-13


def conditional_second_moment(reads: Tensor, targets: Tensor, *, bias: bool = False) -> Tensor:
    r"""Return the second moment of what is left of ``targets`` beside their best linear prediction from ``reads``.

    .. math:: \Sigma_{m|x} = \Sigma_{mm} - \Sigma_{mx} \Sigma_{xx}^+ \Sigma_{xm}

    Args:
        reads: x, ``(token, p)``.
        targets: m, ``(token, k)``.
        bias: Predict with a constant: covariances instead of second moments.

    Returns:
        ``(k, k)``.
    """
    m = _moments_about(targets, bias)
    cross, predicted = _cross_moments(reads, m, bias)
    return m.T @ m / len(m) - cross.T @ predicted


def unreachable_share(reads: Tensor, targets: Tensor, *, bias: bool = False) -> float:
    r"""Return :math:`tr \Sigma_{m|x} / tr \Sigma_{mm}`: what edits that read x leave of an isotropic update on average.

    Args:
        reads: x, ``(token, p)``.
        targets: m, ``(token, k)``.
        bias: Edits with a bias; the share is then of the shift about its mean over tokens.

    Returns:
        From 0 to 1. With a bias it is one minus R squared of m predicted from x. Source: P43.

    Cost: second moments of x and of x with m; none of m, of which only the trace is needed.
    """
    m = _moments_about(targets, bias)
    cross, predicted = _cross_moments(reads, m, bias)
    return float(1 - (cross * predicted).sum() / (m.square().sum() / len(m)))


def _cross_moments(reads: Tensor, m: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Return the second moment of x with m, and the same after the pseudoinverse of that of x: ``(p, k)`` both."""
    x = _moments_about(reads, bias)
    # Channels of one size: what is left does not change, the inverse is better conditioned.
    x = x / channel_sizes(x)
    cross = x.T @ m / len(x)
    return cross, torch.linalg.pinv(x.T @ x / len(x), rtol=RANK_CUT, hermitian=True) @ cross


def channel_sizes(x: Tensor) -> Tensor:
    """Return the root mean square of every channel of ``(token, channel)``, never zero, to divide by."""
    return x.square().mean(0).sqrt().clamp_min(1e-300)


def _moments_about(tensor: Tensor, bias: bool) -> Tensor:
    return tensor - tensor.mean(0) if bias else tensor


class RidgeReads:
    """What is read on some tokens, decomposed once for linear predictions with any penalty and of any targets.

    Args:
        reads: x of the tokens fitted on, ``(token, p)``.
    """

    def __init__(self, reads: Tensor) -> None:
        self._mean = reads.mean(0)
        x = reads - self._mean
        self._scale = channel_sizes(x)
        self._x = x / self._scale
        self._values, self._vectors = torch.linalg.eigh(self._x.T @ self._x / len(x))

    def prediction(self, targets: Tensor, others: Tensor, ridge: float) -> Tensor:
        """Return the linear prediction, with a constant, of targets at other tokens.

        Args:
            targets: Of the tokens fitted on, ``(token, k)``.
            others: x of the tokens predicted for, ``(other, p)``.
            ridge: Penalty, relative to the mean square of a channel about its mean; the constant is free.

        Returns:
            ``(other, k)``.
        """
        return next(self.predictions(targets, others, [ridge]))

    def predictions(self, targets: Tensor, others: Tensor, ridges: Iterable[float]) -> Iterator[Tensor]:
        """Yield :meth:`prediction` for one penalty after another: what they share is computed once.

        Args:
            targets: Of the tokens fitted on, ``(token, k)``.
            others: x of the tokens predicted for, ``(other, p)``.
            ridges: Penalties.

        Yields:
            ``(other, k)`` per penalty.
        """
        about = targets.mean(0)
        cross = self._vectors.T @ (self._x.T @ (targets - about)) / len(self._x)
        turned = (others - self._mean) / self._scale @ self._vectors
        for ridge in ridges:
            values = self._values + ridge
            kept = values > RANK_CUT * values[-1]
            yield turned[:, kept] @ (cross[kept] / values[kept, None]) + about


def held_out_share(reads: Tensor, targets: Tensor, others: Tensor, other_targets: Tensor, ridge: float = 0.0) -> float:
    """Return one minus R squared of targets on other tokens, predicted by a map fitted on ``reads``.

    Args:
        reads: x of the tokens fitted on, ``(token, p)``.
        targets: m of those tokens, ``(token, k)``.
        others: x of the held-out tokens, ``(other, p)``.
        other_targets: m of the held-out tokens, ``(other, k)``.
        ridge: Of :meth:`RidgeReads.prediction`.

    Returns:
        0 where everything is predicted, about 1 where nothing is; the mean of the fitted tokens is the reference.
    """
    left = other_targets - RidgeReads(reads).prediction(targets, others, ridge)
    return float(left.square().sum() / (other_targets - targets.mean(0)).square().sum())


def variates_between(outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the canonical correlations of two sets of channels over tokens, and the variates on the targets' side.

    Cosines of the principal angles between the two row spaces, in falling order; where the targets have more
    dimensions than what is read, the last ones are 0.

    Args:
        outer: Orthonormal basis of what is read, ``(token, rank of x)``.
        inner: Of the targets, ``(token, rank of m)``.

    Returns:
        ``(rank of m,)`` and ``(token, rank of m)`` with orthonormal columns.
    """
    turned = torch.linalg.svd(inner.T @ outer, full_matrices=True)
    correlations = inner.new_zeros(inner.shape[1])
    correlations[: len(turned.S)] = turned.S.clamp(max=1)
    return correlations, inner @ turned.U


def orthonormal_basis(matrix: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns of a matrix (token channel), up to :data:`RANK_CUT`."""
    scaled = matrix / channel_sizes(matrix)
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    kept = values > RANK_CUT * values[-1]
    # White up to rounding, which is large for the smallest directions; QR takes that away.
    return torch.linalg.qr(scaled @ (vectors[:, kept] / values[kept].sqrt())).Q


def reachable_share(shift: Tensor, correlations: Tensor, variates: Tensor) -> float:
    r"""Return the share of one shift that edits can make: :math:`\sum_i \rho_i^2 |\delta^T v_i|^2 / |\delta|^2`.

    Args:
        shift: The update's shift, ``(token, d)``.
        correlations: rho, ``(i,)``.
        variates: v, ``(token, i)``.

    Returns:
        From 0 to 1. Source: P44.
    """
    energy = (variates.T @ shift).square().sum(1)
    return float((correlations.square() * energy).sum() / shift.square().sum())


def token_spectrum(reads: Tensor) -> Tensor:
    """Return the eigenvalues of the token kernel ``X X^T`` that are not zero by their number, in falling order.

    Args:
        reads: What is read, ``(token, p)``.

    Returns:
        ``(min(token, p),)``.
    """
    return torch.linalg.svdvals(reads).square()


def effective_dimension(spectrum: Tensor, level: float) -> float:
    r"""Return :math:`tr K (K + l)^{-1}` of a token kernel K.

    Args:
        spectrum: Its eigenvalues (:func:`token_spectrum`).
        level: l, the variance of the noise over that of an entry of the update.

    Returns:
        Number of dimensions per output channel that rise above the noise; at ``l = 0`` the rank. Source: P44.
    """
    return float((spectrum / (spectrum + level)).sum())


def unreachable_kernel_share(basis: Tensor, kernel: Tensor) -> float:
    r"""Return :math:`tr (1 - P_x) k / tr k`: what edits that read x leave of isotropic updates with token kernel k.

    Args:
        basis: An orthonormal basis of what the channels of x span over tokens (:func:`orthonormal_basis`).
        kernel: :math:`k_{ts} = tr E[\delta_t \delta_s^T]` up to a factor, ``(token, token)``.

    Returns:
        From 0 to 1. Source: P45.
    """
    return float(1 - (basis * (kernel @ basis)).sum() / kernel.trace())


def held_out_kernel_share(weights: Tensor, kernel: Tensor) -> float:
    """Return the share of held-out shifts that edits fitted on other tokens leave, on average over updates.

    Args:
        weights: What every held-out token's prediction is made of, as weights of the fitted ones: ``(other, token)``
            (:class:`RidgeReads` with the identity as targets).
        kernel: k of both, the tokens fitted on first, ``(token + other, token + other)``.

    Returns:
        0 where everything is predicted, about 1 where nothing is. Source: P45.
    """
    count = weights.shape[1]
    mean = torch.full_like(weights, 1 / count)

    def energy(weights: Tensor) -> Tensor:
        """Return the expected energy of the held-out shifts minus weighted sums of the fitted ones."""
        crossed = (weights * kernel[count:, :count]).sum()
        return kernel[count:, count:].trace() - 2 * crossed + (weights * (weights @ kernel[:count, :count])).sum()

    return float(energy(weights) / energy(mean))
