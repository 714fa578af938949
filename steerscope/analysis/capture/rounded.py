"""Sketched features as whole numbers of eight bits: half the memory of bfloat16, and exact inner products.

Every example and output direction has a unit of its own, the 127th part of its largest number. Rounding moves a kernel
by less than a thousandth, where a sketch's own error is some percent: errors of thousands of numbers average out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerscope.equivalence.products import integer_products

LARGEST = 127


@dataclass(frozen=True)
class Rounded:
    """Features as whole numbers.

    Attributes:
        numbers: ``row slot feature``, of eight bits; or picked rows ``row feature``.
        units: ``row slot``, or ``row``: what one is worth. NaN or infinite where the feature was.
    """

    numbers: Tensor
    units: Tensor

    @classmethod
    def room(cls, rows: int, slots: int, length: int, device: torch.device) -> Rounded:
        """Return room for features; what is not written takes no memory.

        Args:
            rows: Examples.
            slots: Output directions per example.
            length: Numbers per feature.
            device: Where they are kept.

        Returns:
            Features of any value.
        """
        numbers = torch.empty(rows, slots, length, dtype=torch.int8, device=device)
        return cls(numbers, torch.empty(rows, slots, device=device))

    @classmethod
    def cat(cls, parts: Sequence[Rounded]) -> Rounded:
        """Return the rows of several features one after the other."""
        return cls(torch.cat([part.numbers for part in parts]), torch.cat([part.units for part in parts]))

    def put(self, rows: Tensor, slot: int, feature: Tensor) -> None:
        """Write features of some rows.

        Args:
            rows: Which.
            slot: Which output direction.
            feature: ``row feature``.
        """
        units = feature.abs().amax(-1) / LARGEST
        divisor = torch.where(units == 0, torch.ones_like(units), units)
        self.numbers[rows, slot] = (feature / divisor[:, None]).round_().to(torch.int8)
        self.units[rows, slot] = units.to(self.units)

    def __getitem__(self, index: Any) -> Rounded:
        return Rounded(self.numbers[index], self.units[index])

    def narrowed(self, blocks: slice, of: int) -> Rounded:
        """Return some of the blocks that a feature is made of.

        Args:
            blocks: Which.
            of: How many there are.
        """
        return Rounded(self.numbers.unflatten(-1, (of, -1))[..., blocks, :].flatten(-2), self.units)

    def widened(self) -> Tensor:
        """Return the features as float32."""
        return self.numbers.float().mul_(self.units[..., None])

    def gram(self) -> Tensor:
        """Return the inner products of picked rows ``row row``, exact but for the last step."""
        return integer_products(self.numbers).mul_(self.units[:, None]).mul_(self.units)
