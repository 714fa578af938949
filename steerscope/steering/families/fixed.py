"""A fixed vector: the same edit at every token, whatever the site reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steerscope.steering.families.base import Affine, EditOptions, SteeringEdit


class FixedVector(SteeringEdit):
    """``x + v``. Starts at zero, so as no edit."""

    name = "vector"
    equation = "x + v"
    source = "steering vectors; arXiv 2603.00425"
    has_rank = False
    has_matrix = False

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        self.v = nn.Parameter(torch.zeros(options.width, dtype=options.dtype))

    def delta(self, read: Tensor) -> Tensor:
        """Return ``v`` at every token."""
        return self.v.expand_as(read)

    def affine(self) -> Affine:
        """Return ``c = v``."""
        return Affine(vector=self.v.detach())
