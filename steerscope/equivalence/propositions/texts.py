"""Tokens of a data set, in two parts that share no text: edits are fitted on one and judged on the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """Sequences of one length, without padding.

    Attributes:
        name: Of the data, for the table.
        fitted: ``batch token``: what edits are fitted on.
        held_out: ``batch token``: other texts, of the same length.
    """

    name: str
    fitted: Tensor
    held_out: Tensor

    @property
    def ids(self) -> Tensor:
        """All sequences, the fitted ones first: ``batch token``."""
        return torch.cat((self.fitted, self.held_out))


def new_contexts(fitted: Tensor, held_out: Tensor) -> Tensor:
    """Return which held-out tokens no fitted sequence has with the same tokens before them.

    A model computes the same numbers for the same beginning: such a token would not be held out.

    Args:
        fitted: ``batch token``.
        held_out: ``batch token``.

    Returns:
        ``batch token``, true where the beginning up to and with this token is new.
    """
    seen = {tuple(row[: end + 1]) for row in fitted.tolist() for end in range(len(row))}
    return torch.tensor([[tuple(row[: end + 1]) not in seen for end in range(len(row))] for row in held_out.tolist()])
