"""The features of all rows that a capture fills, and which of them a batch fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerscope.analysis.data.encoding import Batch
from steerscope.sites import Site


@dataclass(frozen=True)
class BatchRows:
    """Whose features a batch makes.

    Attributes:
        mask: ``batch token``: 1 for real tokens, 0 for padding.
        examples: The examples of the batch, each once.
        local: ``batch``: which of them a sequence is of.
    """

    mask: Tensor
    examples: Tensor
    local: Tensor

    @classmethod
    def of(cls, batch: Batch) -> BatchRows:
        """Return those of a batch: rows stand by length, not by index, so each goes where its example says."""
        examples, local = torch.unique(batch.example, return_inverse=True)
        if len(examples) == len(batch.example):
            examples, local = batch.example, torch.arange(len(examples), device=examples.device)
        return cls(batch.mask, examples, local)

    @property
    def several(self) -> bool:
        """Whether an example has several sequences, whose features add."""
        return len(self.examples) < len(self.local)

    def by_example(self, features: Tensor) -> Tensor:
        """Return features ``any batch feature`` as ``any example feature``."""
        if not self.several:
            return features
        shape = (len(features), len(self.examples), features.shape[2])
        return features.new_zeros(shape).index_add_(1, self.local, features)


class Stored:
    """Features ``row slot feature`` of sites, write points and weights, filled batch by batch.

    Args:
        shape: Rows and slots.
    """

    batch: BatchRows

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.linear: dict[Site, Tensor] = {}
        self.vector: dict[Site, Tensor] = {}
        self.weights: dict[Any, Tensor] = {}
        # Write points that a derivative came back to.
        self.reached: set[Site] = set()

    def keep(self, into: dict[Any, Tensor], key: Any, feature: Tensor, slot: int) -> None:
        """Put the features of a batch's examples in their rows.

        Args:
            into: ``linear``, ``vector`` or ``weights``.
            key: Whose features they are.
            feature: ``example feature``.
            slot: The backward pass.
        """
        if key not in into:
            # Every row is written once, by its batch; memory that is not written yet takes no room.
            # Another thread may be here too: the first one's room is taken.
            into.setdefault(key, feature.new_empty(*self.shape, feature.shape[1]))
        into[key][self.batch.examples, slot] = feature
