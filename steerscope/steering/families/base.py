"""What every family of edits has in common: how it is described, built, applied and turned into an affine map."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.sites import SiteKind


@dataclass(frozen=True)
class EditOptions:
    """How one edit is built.

    Attributes:
        width: Channels of the site.
        rank: Inner width, for families that have one.
        activation: Name of the inner function, for the nonlinear family.
        bias: Whether a vector is added to what is written, for families that leave the choice.
        scaled: Whether what is read is divided by one number, the site's root mean square.
        start: ``no-op`` or ``published``.
        dtype: Data type of the parameters and of the edit's computation.
    """

    width: int
    rank: int | None
    activation: str | None
    bias: bool
    scaled: bool
    start: str
    dtype: torch.dtype

    @property
    def inner(self) -> int:
        """The rank, where the family has one."""
        if self.rank is None:
            raise InputError("this family needs a rank, got none; pass rank=8, for example.")
        return self.rank


@dataclass(frozen=True)
class Affine:
    """An edit that adds ``M x + c``, with M by its factors.

    Attributes:
        up: ``(width rank)``, or None where nothing is read.
        down: ``(rank width)``, likewise.
        vector: c, ``(width)``, or None.
    """

    up: Tensor | None = None
    down: Tensor | None = None
    vector: Tensor | None = None

    @property
    def matrix(self) -> Tensor | None:
        """M, ``(width width)``."""
        return None if self.up is None or self.down is None else self.up @ self.down

    def times(self, strength: float) -> Affine:
        """Return the edit with what it adds multiplied by a number."""
        if strength == 1:
            return self
        up, vector = (None if part is None else strength * part for part in (self.up, self.vector))
        return Affine(up, self.down, vector)


class SteeringEdit(nn.Module):
    """An edit ``d(x)`` with parameters, to be added at a site: ``x + d(x)``.

    Subclasses set the class attributes below, make their parameters in ``__init__`` (drawn from the generator) and
    compute ``delta``.

    Attributes:
        name: The family's name in a configuration.
        equation: The edit, as printed and as stated in the file.
        source: Where the form comes from.
        has_rank: Whether there is an inner width.
        can_scale: Whether what is read can be divided by the site's root mean square.
        has_bias_choice: Whether the vector on the write is an option.
        has_published_start: Whether its authors start it otherwise (then ``start="published"`` does so too).
        is_orthonormal: Whether it holds a matrix with orthonormal rows, which needs float32 or float64.
        is_affine: Whether what it adds is ``M x + c`` (:meth:`affine`).
        has_matrix: Whether there is an M, that is, whether what it adds depends on what it reads.
        has_constant: Whether there is a c, for families that leave no choice of it.
        kinds: The kinds of site it is defined at; None means any.
    """

    name: ClassVar[str]
    equation: ClassVar[str]
    source: ClassVar[str]
    has_rank: ClassVar[bool] = True
    can_scale: ClassVar[bool] = False
    has_bias_choice: ClassVar[bool] = False
    has_published_start: ClassVar[bool] = False
    is_orthonormal: ClassVar[bool] = False
    is_affine: ClassVar[bool] = True
    has_matrix: ClassVar[bool] = True
    has_constant: ClassVar[bool] = True
    kinds: ClassVar[tuple[SiteKind, ...] | None] = None

    scale: Tensor | None

    def __init__(self, options: EditOptions, generator: torch.Generator) -> None:
        super().__init__()
        self.options = options
        unknown = torch.full((), float("nan"), dtype=options.dtype) if options.scaled else None
        self.register_buffer("scale", unknown)
        # Known on the Python side: asking the buffer would make a GPU wait in every pass.
        self.is_ready = not options.scaled

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SteeringEdit:
        """Follow the model to another device, and keep the adapter's own data type when the model's is changed."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)

    @abstractmethod
    def delta(self, read: Tensor) -> Tensor:
        """Return what is added for what is read, both ``(... width)`` in the parameters' data type."""

    @abstractmethod
    def affine(self) -> Affine:
        """Return the edit as an affine map.

        Raises:
            InputError: It is none.
        """

    def forward(self, read: Tensor) -> Tensor:
        """Return what is added, ``(... width)``, computed in the parameters' data type.

        Raises:
            InputError: The scale of what is read was never measured.
        """
        if not self.is_ready:
            raise InputError(
                "this adapter divides what it reads by the site's root mean square, which was not measured yet; call "
                "model.measure_scales(batches) with a few batches of your data before the first pass."
            )
        # Autocast would compute in half precision what is kept in single; a no-op by difference must stay one.
        # What enters a block may still be on the device of the block before.
        home = next(self.parameters()).device
        with torch.autocast(home.type, enabled=False):
            return self.delta(read.to(home, self.options.dtype))

    @classmethod
    def adds_vector(cls, bias: bool | None) -> bool:
        """Whether what it adds has a constant part c, where ``bias`` is the configuration's."""
        return bool(bias) if cls.has_bias_choice else cls.has_constant

    def set_scale(self, value: float) -> None:
        """Set the number that what is read is divided by.

        Raises:
            InputError: The edit has no scale, or the number is not positive and finite.
        """
        if self.scale is None:
            raise InputError(f"this {self.name!r} edit reads without a scale; build it with scale='rms'.")
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"a scale must be positive and finite, got {value}; measure it on other data.")
        self.scale.fill_(value)
        self.is_ready = True

    def divided(self, inner: Tensor) -> Tensor:
        """Divide by the scale. Of ``D x``, not of ``x``: the same number, ``width / rank`` times cheaper."""
        return inner if self.scale is None else inner / self.scale


def default_start(shape: tuple[int, ...], fan_in: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return what PyTorch starts a linear map, or its bias, with: uniform in +-1/sqrt(fan_in).

    Args:
        shape: ``(rows, columns)`` of the map, or ``(rows,)`` of the bias.
        fan_in: Columns of the map.
        dtype: Of the result; drawn in float64 whatever it is.
        generator: Source of the draws; moves on.

    Returns:
        In that shape, on the CPU.
    """
    # Drawn in float64 on the CPU, so that data type and device do not change the start.
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    return ((2 * drawn - 1) / math.sqrt(fan_in)).to(dtype)


def normal(size: int, std: float, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return normal numbers of mean zero.

    Args:
        size: How many.
        std: Standard deviation.
        dtype: Of the result; drawn in float64 whatever it is.
        generator: Source of the draws; moves on.

    Returns:
        ``(size)``, on the CPU.
    """
    return (std * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
