"""Edit forms: what can be added at a site, as pure functions of parameters and of what the site reads.

An edit adds ``delta(parameters, h)`` at a site; ``h`` is what the site reads, one token at a time, with the same
parameters at every token. No hooks and no training here; ``steering/families`` holds the families that are trained.
Tensors: ``h`` is ``(..., read)``, the edit ``(..., write)``; at all of today's sites both widths are the site's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from steerscope.errors import InputError, did_you_mean

Delta = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class EditForm:
    """One parametrised form of edits.

    Attributes:
        name: The form's name in :data:`EDIT_FORMS`.
        equation: The edit, in the symbols of ``axes``.
        axes: The axes of every parameter, in the words ``read``, ``write`` and ``rank``.
        zero_at: The parameters that make the edit exactly zero once they are zero, whatever the others are.
            With all parameters zero, every form's edit is zero.
        is_linear_in_parameters: Whether twice the parameters are twice the edit. Where it is not (``low_rank``
            is bilinear), the derivative at all-zero parameters is zero; take it at ``zero_at = 0`` with
            the other parameters drawn at random.
        formula: The edit as a function of parameters and of what is read; called through :meth:`delta`.
    """

    name: str
    equation: str
    axes: Mapping[str, tuple[str, ...]]
    zero_at: tuple[str, ...]
    is_linear_in_parameters: bool
    formula: Delta = field(repr=False)

    @property
    def has_rank(self) -> bool:
        """Whether the form needs a rank."""
        return any("rank" in axes for axes in self.axes.values())

    def init_shapes(self, width_read: int, width_write: int, rank: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter.

        Args:
            width_read: Channels of what the edit reads.
            width_write: Channels of what it adds.
            rank: Inner width; required for forms that have one, refused for the others.

        Returns:
            Shapes by the parameter's name.

        Raises:
            InputError: A size is not positive, or a rank is missing or means nothing.
        """
        if self.has_rank and rank is None:
            raise InputError(f"edit form {self.name!r} ({self.equation}) needs a rank; pass rank=8, for example.")
        if rank is not None and not self.has_rank:
            raise InputError(f"edit form {self.name!r} ({self.equation}) has no rank; got rank={rank}.")
        sizes = {"read": width_read, "write": width_write} | ({} if rank is None else {"rank": rank})
        for axis, size in sizes.items():
            if size < 1:
                raise InputError(f"edit form {self.name!r} got {axis} size {size}; expected at least 1.")
        return {name: tuple(sizes[axis] for axis in axes) for name, axes in self.axes.items()}

    def num_parameters(self, width_read: int, width_write: int, rank: int | None = None) -> int:
        """Return the number of trainable numbers of one edit; errors as in :meth:`init_shapes`.

        Args:
            width_read: Channels of what the edit reads.
            width_write: Channels of what it adds.
            rank: Inner width, for forms that have one.

        Returns:
            The sum over all parameters of the form.
        """
        return sum(prod(shape) for shape in self.init_shapes(width_read, width_write, rank).values())

    def delta(self, parameters: Mapping[str, Tensor], read: Tensor) -> Tensor:
        """Return what the edit adds.

        Args:
            parameters: One tensor per name in ``axes``; shapes as in :meth:`init_shapes`.
            read: What the site reads, ``(..., read)``.

        Returns:
            The edit ``(..., write)``, to be added by the caller.

        Raises:
            InputError: A parameter is missing, unknown, or of a shape that does not fit (it would broadcast).
        """
        self._check(parameters, read.shape[-1])
        return self.formula(parameters, read)

    def _check(self, parameters: Mapping[str, Tensor], width_read: int) -> None:
        if set(parameters) != set(self.axes):
            raise InputError(
                f"edit form {self.name!r} ({self.equation}) has parameters {sorted(self.axes)}, "
                f"got {sorted(parameters)}."
            )
        sizes = {"read": width_read}
        for name, axes in self.axes.items():
            shape = tuple(parameters[name].shape)
            fits = len(shape) == len(axes) and all(
                sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
            )
            if not fits:
                raise InputError(
                    f"parameter {name!r} of edit form {self.name!r} has shape {shape}; expected ({', '.join(axes)}) "
                    f"where {', '.join(f'{axis} = {size}' for axis, size in sizes.items())}."
                )


def _vector(parameters: Mapping[str, Tensor], read: Tensor) -> Tensor:
    v = parameters["v"]
    return v.expand(*read.shape[:-1], v.shape[-1])


def _linear(parameters: Mapping[str, Tensor], read: Tensor) -> Tensor:
    return torch.einsum("wr,...r->...w", parameters["A"], read)


def _low_rank(parameters: Mapping[str, Tensor], read: Tensor) -> Tensor:
    inner = torch.einsum("kr,...r->...k", parameters["D"], read)
    return torch.einsum("wk,...k->...w", parameters["U"], inner)


# The published forms, arXiv 2603.00425 (P29, P38 in docs/theory.md). Further forms are added here.
EDIT_FORMS: dict[str, EditForm] = {
    found.name: found
    for found in (
        EditForm(
            name="vector",
            equation="v",
            axes={"v": ("write",)},
            zero_at=("v",),
            is_linear_in_parameters=True,
            formula=_vector,
        ),
        EditForm(
            name="linear",
            equation="A h",
            axes={"A": ("write", "read")},
            zero_at=("A",),
            is_linear_in_parameters=True,
            formula=_linear,
        ),
        EditForm(
            name="low_rank",
            equation="U D h",
            axes={"U": ("write", "rank"), "D": ("rank", "read")},
            zero_at=("U",),
            is_linear_in_parameters=False,
            formula=_low_rank,
        ),
    )
}


def edit_form(name: str) -> EditForm:
    """Return the edit form of that name.

    Raises:
        InputError: There is none; the message suggests the closest and lists all.
    """
    if name not in EDIT_FORMS:
        raise InputError(
            f"unknown edit form {name!r}.{did_you_mean(name, list(EDIT_FORMS))} Forms: {', '.join(EDIT_FORMS)}."
        )
    return EDIT_FORMS[name]
