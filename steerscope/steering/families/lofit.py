r"""LoFiT (Yin et al. 2024): learned scales choose attention heads, learned offsets steer the chosen ones.

.. math:: z_i + A_i \odot z_i \;\text{(stage 1)}, \qquad z_i + v_i \;\text{(stage 2)}

for the output z_i of head i, which the output projection reads. Stage 1 trains A with an L1 penalty at all heads and
is thrown away but for the choice of the heads with the largest :math:`|A_i|_2`; stage 2 trains v at these alone. The
published start is normal with standard deviation 1e-3; ``start="no-op"`` starts at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steerscope.sites import SiteKind
from steerscope.steering.families.base import Affine, EditOptions, SteeringEdit, normal

START_STD = 1e-3


def _start(options: EditOptions, generator: torch.Generator) -> nn.Parameter:
    std = START_STD if options.start == "published" else 0.0
    return nn.Parameter(normal(options.width, std, options.dtype, generator))


class LofitScale(SteeringEdit):
    """Stage 1: ``z + A * z``."""

    name = "lofit_scale"
    equation = "z + A * z (per head and channel)"
    source = "Yin et al. 2024, LoFiT, stage 1"
    has_rank = False
    has_constant = False
    has_published_start = True
    kinds = (SiteKind.ATTN_HEADS,)

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        self.A = _start(options, generator)

    def delta(self, read: Tensor) -> Tensor:
        """Return ``A * z``."""
        return self.A * read

    def affine(self) -> Affine:
        """Return ``M = diag(A)``."""
        scales = self.A.detach()
        return Affine(up=torch.diag(scales), down=torch.eye(len(scales), dtype=scales.dtype, device=scales.device))


class LofitOffset(SteeringEdit):
    """Stage 2: ``z + v``."""

    name = "lofit_offset"
    equation = "z + v (per head)"
    source = "Yin et al. 2024, LoFiT, stage 2"
    has_rank = False
    has_matrix = False
    has_published_start = True
    kinds = (SiteKind.ATTN_HEADS,)

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        self.v = _start(options, generator)

    def delta(self, read: Tensor) -> Tensor:
        """Return ``v`` at every token."""
        return self.v.expand_as(read)

    def affine(self) -> Affine:
        """Return ``c = v``."""
        return Affine(vector=self.v.detach())
