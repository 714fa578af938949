"""Symmetric matrices by their lower triangles: half the memory of kernels that are kept, half the traffic of sums."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from steerscope.sites import Site

# Rows of one panel: what lies above the diagonal in it is kept too.
PANEL = 128


class Triangle:
    """The lower triangle of a symmetric matrix ``row row``, in panels of consecutive rows.

    In half precision it is kept only: matrices and sums that are made of it are of float32.

    Memory: ``row * (row + PANEL) / 2`` numbers.
    """

    def __init__(self, kernel: Tensor, dtype: torch.dtype | None = None, unit: float = 1.0) -> None:
        """Keep a symmetric matrix divided by ``unit``, in a data type of its own."""
        self._size = len(kernel)
        # Copies: a view would keep the whole matrix.
        lower = (kernel[rows, : rows.stop] for rows in _panels(len(kernel)))
        self._panels = [(panel / unit).to(dtype or kernel.dtype) for panel in lower]

    def __mul__(self, factor: float) -> Triangle:
        """Return the matrix times a number."""
        part = copy.copy(self)
        part._panels = [_wide(panel) * factor for panel in self._panels]
        return part

    def __add__(self, other: Triangle) -> Triangle:
        """Return the sum with another matrix of the same size."""
        total = copy.copy(self)
        total._panels = [_wide(one) + two for one, two in zip(self._panels, other._panels, strict=True)]
        return total

    def empty(self) -> Tensor:
        """Return room for the matrix ``row row``, for :meth:`put_lower`."""
        return _wide(self._panels[0]).new_zeros(self._size, self._size)

    def put_lower(self, out: Tensor, other: Triangle | None = None) -> None:
        """Write the matrix, or its sum with another one, into the lower triangle of ``out``.

        Args:
            out: ``row row``; what is above the panels is left as it is.
            other: Of the same size.
        """
        for place, (rows, panel) in enumerate(self._by_rows()):
            if other is None:
                out[rows, : rows.stop] = panel
            else:
                torch.add(_wide(panel), other._panels[place], out=out[rows, : rows.stop])

    def whole(self) -> Tensor:
        """Return the matrix ``row row``."""
        out = _wide(self._panels[0]).new_empty(self._size, self._size)
        for rows, panel in self._by_rows():
            out[rows, : rows.stop] = panel
            out[: rows.start, rows] = panel[:, : rows.start].T
        return out

    def _by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        return zip(_panels(self._size), self._panels, strict=True)


class Triangles(Mapping[Site, Tensor]):
    """Kernels of sites, kept as triangles: each is put together when it is asked for."""

    def __init__(self) -> None:
        self.kept: dict[Site, Triangle] = {}

    def __getitem__(self, site: Site) -> Tensor:
        return self.kept[site].whole()

    def __iter__(self) -> Iterator[Site]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)


def _wide(panel: Tensor) -> Tensor:
    return panel.float() if panel.dtype == torch.float16 else panel


def _panels(size: int) -> list[slice]:
    return [slice(start, min(start + PANEL, size)) for start in range(0, size, PANEL)]
