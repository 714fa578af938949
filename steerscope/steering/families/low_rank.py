r"""Low-rank adapters of activations: linear, and with a function between the two maps.

.. math:: x + U (D x / s) + b, \qquad x + U \varphi(D x / s) + b

D starts as PyTorch starts linear maps, U and b at zero: no edit at the start, and U has a gradient at once. ``s`` is
1 or the site's root mean square. What was published (arXiv 2603.00425) has no b and starts D a thousand times
smaller (``bias=False``, ``start="published"``); D at its usual size with a bias on the write trained best in
comparison, and is the default here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steerscope.errors import InputError
from steerscope.steering.families.base import Affine, EditOptions, SteeringEdit, default_start

# The authors' released code: Kaiming's uniform start times this, which is again no edit while U is zero (P30).
PUBLISHED_D = 1e-3

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh}


class LinearAdapter(SteeringEdit):
    """``x + U (D x / s) + b``."""

    name = "linear"
    equation = "x + U (D x / s) + b"
    source = "arXiv 2603.00425 without activation; the bias is this project's"
    can_scale = True
    has_bias_choice = True
    has_published_start = True

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        down = default_start((options.inner, options.width), options.width, options.dtype, generator)
        self.D = nn.Parameter(down * PUBLISHED_D if options.start == "published" else down)
        self.U = nn.Parameter(torch.zeros(options.width, options.inner, dtype=options.dtype))
        zero = torch.zeros(options.width, dtype=options.dtype)
        self.b = nn.Parameter(zero) if options.bias else None

    def inside(self, read: Tensor) -> Tensor:
        """Return ``D x / s``, ``(... rank)``."""
        return self.divided(F.linear(read, self.D))

    def delta(self, read: Tensor) -> Tensor:
        """Return ``U (D x / s) + b``."""
        return F.linear(self.inside(read), self.U, self.b)

    def affine(self) -> Affine:
        """Return ``M = U D / s`` and ``c = b``."""
        down = self.divided(self.D.detach())
        return Affine(self.U.detach(), down, None if self.b is None else self.b.detach())


class NonlinearAdapter(LinearAdapter):
    """``x + U phi(D x / s) + b`` with phi SiLU, GELU or tanh, all zero at zero."""

    name = "nonlinear"
    equation = "x + U phi(D x / s) + b"
    source = "arXiv 2603.00425; the bias is this project's"
    is_affine = False

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__(options, generator)
        self.phi = ACTIVATIONS[options.activation or "silu"]

    def delta(self, read: Tensor) -> Tensor:
        """Return ``U phi(D x / s) + b``."""
        return F.linear(self.phi(self.inside(read)), self.U, self.b)

    def affine(self) -> Affine:
        """Refuse: there is no matrix that does this.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"a nonlinear edit ({self.equation}) is no affine map of x, so no weight or bias of the model can hold it; "
            "keep it as an adapter, or train family='linear' if it must be merged."
        )


@dataclass(frozen=True)
class StartSlope:
    """How an activation acts on what it gets at the start of training.

    Attributes:
        slope: Slope of the best line through zero, ``E[z phi(z)] / E[z^2]``: the gain of the edit against the linear
            family. Near 1/2 for SiLU and GELU and near 1 for tanh while z is small.
        linear_share: Part of the energy of ``phi(z)`` that this line holds; near 1 the family starts as a linear one.
    """

    slope: float
    linear_share: float


def start_slope(activation: str, inner: Tensor) -> StartSlope:
    """Measure the start slope of an activation on ``inner``, the values ``D x / s`` (any shape).

    Args:
        activation: Name of the activation: ``silu``, ``gelu`` or ``tanh``.
        inner: Values ``D x / s`` of any shape.

    Returns:
        The slope, and how much of the activation's output it explains.

    Raises:
        InputError: An unknown activation, or only zeros.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"unknown activation {activation!r}; valid: {', '.join(ACTIVATIONS)}.")
    z = inner.detach().double().flatten()
    energy = float(z.square().sum())
    if energy == 0:
        raise InputError("cannot measure a slope on values that are all zero; give what the site reads, times D.")
    out = ACTIVATIONS[activation](z)
    slope = float(z @ out) / energy
    return StartSlope(slope, slope * slope * energy / float(out.square().sum()))
