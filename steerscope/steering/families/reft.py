r"""The ReFT family (Wu et al. 2024): edits inside an r-dimensional subspace.

.. math:: x + R^\top (W x + b - R x) \;\text{(LoReFT)}, \qquad x + R^\top (W x + b) \;\text{(DiReFT)}, \qquad
    x + V^\top (W x + b - V x) \;\text{(NoReFT)}

R has orthonormal rows, V is any matrix. The published start (W, b and V as PyTorch starts linear maps, R random)
changes the model before the first step. ``start="no-op"`` is a point of the same families where the edit is exactly
zero: W = R (LoReFT), W = V (NoReFT) or W = 0 (DiReFT), with b = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steerscope.errors import InputError
from steerscope.steering.families.base import Affine, EditOptions, SteeringEdit, default_start


class Rotation(nn.Module):
    """A matrix R (``rank width``) whose rows stay orthonormal whatever training does to its parameters.

    R^T is a product of ``rank`` Householder reflections, whose vectors are the parameters below the diagonal of
    ``reflectors`` (``width rank``), times a fixed sign per column. torch's own ``orthogonal`` parametrisation keeps
    these signs among the trained numbers and truncates them to integers: one step of weight decay turns them to zero,
    and R with them. Here they are a buffer.

    Cost: ``O(width rank^2)`` per call.
    """

    signs: Tensor

    def __init__(self, rank: int, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        if rank > width:
            raise InputError(
                f"{rank} orthonormal rows do not fit into {width} channels; use a rank of at most {width}."
            )
        drawn = torch.randn(width, rank, generator=generator, dtype=torch.float64)
        columns = torch.linalg.qr(drawn).Q
        # Below the diagonal geqrf leaves the reflection vectors; their product is the columns up to signs.
        reflectors = torch.geqrf(columns).a.tril(-1)
        self.reflectors = nn.Parameter(reflectors.to(dtype))
        product = _reflected(reflectors)
        self.register_buffer("signs", (product * columns).sum(0).sign().to(dtype))

    def forward(self) -> Tensor:
        """Return R, ``(rank width)``."""
        return (_reflected(self.reflectors) * self.signs).T.contiguous()


def _reflected(reflectors: Tensor) -> Tensor:
    """Return the first columns of the product of the reflections ``I - tau v v^T``, ``(width rank)``."""
    below = reflectors.tril(-1)
    # v has a one on the diagonal that is not stored, so v.v = 1 + |below|^2, and tau = 2 / v.v makes it a reflection.
    tau = 2 / (1 + below.square().sum(0))
    return torch.linalg.householder_product(below, tau)


class _Reft(SteeringEdit):
    """What the three have in common: a learned source ``W x + b``."""

    has_published_start = True

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        rank, width, dtype = options.inner, options.width, options.dtype
        self.W = nn.Parameter(default_start((rank, width), width, dtype, generator))
        self.b = nn.Parameter(default_start((rank,), width, dtype, generator))
        if options.start == "no-op":
            nn.init.zeros_(self.b)

    def moved(self, read: Tensor, basis: Tensor, old: Tensor | None) -> Tensor:
        """Return ``basis^T (W x / s + b - old x)``."""
        source = self.divided(F.linear(read, self.W))
        if old is not None:
            # The same kernel on both sides, and b after: with W = old the difference is zero to the last bit.
            source = source - F.linear(read, old)
        return (source + self.b) @ basis

    def as_affine(self, basis: Tensor, old: Tensor | None) -> Affine:
        """Return ``M = basis^T (W / s - old)`` and ``c = basis^T b``."""
        source = self.divided(self.W.detach())
        source = source if old is None else source - old.detach()
        return Affine(basis.detach().T, source, self.b.detach() @ basis.detach())


class LoReft(_Reft):
    """``x + R^T (W x + b - R x)``, R with orthonormal rows."""

    name = "loreft"
    equation = "x + R^T (W x + b - R x), R R^T = I"
    source = "Wu et al. 2024, LoReFT"
    is_orthonormal = True

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        self.rotation = Rotation(options.inner, options.width, options.dtype, generator)
        if options.start == "no-op":
            with torch.no_grad():
                self.W.copy_(self.rotation())

    def delta(self, read: Tensor) -> Tensor:
        """Return ``R^T (W x + b - R x)``."""
        rotation = self.rotation()
        return self.moved(read, rotation, rotation)

    def affine(self) -> Affine:
        """Return ``M = R^T (W - R)`` and ``c = R^T b``."""
        rotation = self.rotation()
        return self.as_affine(rotation, rotation)


class DiReft(_Reft):
    """``x + R^T (W x / s + b)``, R with orthonormal rows."""

    name = "direft"
    equation = "x + R^T (W x / s + b), R R^T = I"
    source = "Wu et al. 2024, DiReFT"
    is_orthonormal = True
    can_scale = True

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        self.rotation = Rotation(options.inner, options.width, options.dtype, generator)
        if options.start == "no-op":
            nn.init.zeros_(self.W)

    def delta(self, read: Tensor) -> Tensor:
        """Return ``R^T (W x / s + b)``."""
        return self.moved(read, self.rotation(), None)

    def affine(self) -> Affine:
        """Return ``M = R^T W / s`` and ``c = R^T b``."""
        return self.as_affine(self.rotation(), None)


class NoReft(_Reft):
    """``x + V^T (W x + b - V x)``, V any matrix."""

    name = "noreft"
    equation = "x + V^T (W x + b - V x)"
    source = "Wu et al. 2024, NoReFT"

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        self.V = nn.Parameter(default_start(self.W.shape, options.width, options.dtype, generator))
        if options.start == "no-op":
            with torch.no_grad():
                self.W.copy_(self.V)

    def delta(self, read: Tensor) -> Tensor:
        """Return ``V^T (W x + b - V x)``."""
        return self.moved(read, self.V, self.V)

    def affine(self) -> Affine:
        """Return ``M = V^T (W - V)`` and ``c = V^T b``."""
        return self.as_affine(self.V, self.V)
