"""One edit for all tokens, fitted to real shifts by direct least squares: what the formulas of reach.py are about."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from steerscope.equivalence.reach import RidgeReads, channel_sizes, orthonormal_basis

# An edit A x, one with a bias, and one with a bias and a ridge, judged on other texts than it is fitted on.
PLAIN, BIAS, OTHERS = "without a bias", "with a bias", "other texts"
# Ridges tried, relative to a channel's mean square; the one that predicts best between halves of the fitted texts.
RIDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)

# What is left of a shift and the whole of it, sums of squares over tokens, per output channel.
Pair = tuple[Tensor, Tensor]


class SharedEdit:
    """Edits that read the same, fitted to any shifts; what costs much is computed when it is first asked for, and once.

    Args:
        reads: x, ``(token, p)``, the tokens fitted on first.
        fitted: How many those are.
        like: What to predict for the choice of the ridge, ``(token, k)`` of the same tokens.

    Attributes:
        fitted: x of the tokens fitted on, ``(token, p)``.
        others: x of the tokens of other texts.
    """

    def __init__(self, reads: Tensor, fitted: int, like: Tensor) -> None:
        self.fitted, self.others = reads[:fitted], reads[fitted:]
        self._like = like[:fitted]

    @cached_property
    def ridge(self) -> float:
        """Of the edit that is judged on other texts, relative to a channel's mean square."""
        return chosen_ridge(self.fitted, self._like)

    @cached_property
    def basis(self) -> Tensor:
        """What the channels of x span over the tokens fitted on: ``(token, rank)``, orthonormal."""
        return orthonormal_basis(self.fitted)

    @cached_property
    def weights(self) -> Tensor:
        """What the ridge's predictions on other texts are made of: ``(other, token)``, by weights of fitted tokens."""
        identity = torch.eye(len(self.fitted), dtype=self.fitted.dtype)
        return RidgeReads(self.fitted).prediction(identity, self.others, self.ridge)

    def errors(self, kind: str, shift: Tensor) -> Pair:
        """Return what the best edit leaves of a shift, and the whole of it.

        Args:
            kind: :data:`PLAIN`, :data:`BIAS` (both on the tokens fitted on; the latter about the mean) or
                :data:`OTHERS`.
            shift: What an update does, ``(token, channel)``, the tokens fitted on first.

        Returns:
            Two sums of squares over tokens, each ``(channel,)``.
        """
        own, other = shift[: len(self.fitted)], shift[len(self.fitted) :]
        if kind == PLAIN:
            x, inverse = self._plain
            left, whole = own - x @ (inverse @ own), own
        else:
            mean = own.mean(0)
            read, inverse = self._ridged if kind == OTHERS else self._biased
            judged = other if kind == OTHERS else own
            whole = judged - mean
            left = whole - read @ (inverse @ (own - mean))
        return left.square().sum(0), whole.square().sum(0)

    @cached_property
    def _plain(self) -> Pair:
        x = _even(self.fitted)
        return x, torch.linalg.pinv(x)

    @cached_property
    def _biased(self) -> Pair:
        # With its bias free an edit fits what is centred by what is centred.
        x = _even(self.fitted - self.fitted.mean(0))
        return x, torch.linalg.pinv(x)

    @cached_property
    def _ridged(self) -> Pair:
        x = self.fitted - self.fitted.mean(0)
        scale = channel_sizes(x)
        penalty = (self.ridge * len(x)) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)
        # Least squares with one more row per channel, whose target is 0.
        inverse = torch.linalg.pinv(torch.cat((x / scale, penalty)))[:, : len(x)]
        return (self.others - self.fitted.mean(0)) / scale, inverse


def _even(x: Tensor) -> Tensor:
    """Return channels of one size, for the conditioning of the inverse: an edit can undo it."""
    return x / channel_sizes(x)


def chosen_ridge(reads: Tensor, targets: Tensor) -> float:
    """Return the ridge that predicts best from the first half of the fitted texts to the second.

    Args:
        reads: x of the tokens fitted on, ``(token, p)``.
        targets: m of those tokens.

    Returns:
        One of :data:`RIDGES`.
    """
    half = len(reads) // 2
    found = RidgeReads(reads[:half]).predictions(targets[:half], reads[half:], RIDGES)
    errors = [float((targets[half:] - one).square().sum()) for one in found]
    return RIDGES[errors.index(min(errors))]
