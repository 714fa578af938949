"""Symmetric matrices by their lower triangles: half the memory of kernels that are kept, half the traffic of sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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

    def empty(self, size: int | None = None) -> Tensor:
        """Return room for the matrix ``row row``, or for another size of the same data type; zeros."""
        size = self._size if size is None else size
        return _wide(self._panels[0]).new_zeros(size, size)

    def put_lower(self, out: Tensor, base: Tensor | None = None, of: Sequence[slice] | None = None) -> None:
        """Write the matrix, or its sum with another one, into the lower triangle of ``out``.

        Args:
            out: ``row row``; what is above the panels is left as it is.
            base: ``row row``, right in its lower triangle.
            of: Ranges of rows, in ascending order, whose part of the matrix is wanted: ``out`` and ``base`` hold
                these rows only.
        """
        for target, source in self._pieces(of):
            out[target].copy_(source)
            if base is not None:
                out[target].add_(base[target])

    def add_to(self, out: Tensor, factor: float = 1.0) -> None:
        """Add a multiple of the matrix to the lower triangle of another one.

        Args:
            out: ``row row``; what is above the panels is left as it is.
            factor: What the matrix is multiplied by.
        """
        for target, source in self._pieces(None):
            out[target].add_(_wide(source), alpha=factor)

    def whole(self, of: Sequence[slice] | None = None) -> Tensor:
        """Return the matrix ``row row``, or the part of some ranges of rows."""
        out = self.empty(None if of is None else sum(rows.stop - rows.start for rows in of))
        self.put_lower(out, of=of)
        return mirrored(out)

    def _pieces(self, of: Sequence[slice] | None) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """Yield where in a matrix of the rows ``of`` each piece of a panel goes, and the piece."""
        ranges, starts = [slice(0, self._size)] if of is None else list(of), [0]
        for rows in ranges:
            starts.append(starts[-1] + rows.stop - rows.start)
        for panel_rows, panel in zip(_panels(self._size), self._panels, strict=True):
            for at, rows in zip(starts, ranges, strict=False):
                first, last = max(panel_rows.start, rows.start), min(panel_rows.stop, rows.stop)
                if first >= last:
                    continue
                down = slice(at + first - rows.start, at + last - rows.start)
                own = panel[first - panel_rows.start : last - panel_rows.start]
                for across, columns in zip(starts, ranges, strict=False):
                    stop = min(columns.stop, panel_rows.stop)
                    if columns.start < stop:
                        target = down, slice(across, across + stop - columns.start)
                        yield target, own[:, columns.start : stop]


class Triangles(Mapping[Site, Tensor]):
    """Kernels of sites, kept as triangles: each is put together when it is asked for.

    Args:
        kept: The triangles.
        of: Ranges of rows in ascending order that kernels are wanted of; without it all.
    """

    def __init__(self, kept: dict[Site, Triangle] | None = None, of: Sequence[slice] | None = None) -> None:
        self.kept: dict[Site, Triangle] = {} if kept is None else kept
        self.of = of

    def part(self, of: Sequence[slice]) -> Triangles:
        """Return the same kernels on some of the rows."""
        return Triangles(self.kept, of)

    def __getitem__(self, site: Site) -> Tensor:
        return self.kept[site].whole(self.of)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)


def mirrored(lower: Tensor) -> Tensor:
    """Return a symmetric matrix ``row row`` whose lower triangle this is; what is above is written over."""
    for rows in _panels(len(lower)):
        square = lower[rows, rows]
        square.copy_(square.tril() + square.tril(-1).T)
        lower[: rows.start, rows] = lower[rows, : rows.start].T
    return lower


def _wide(panel: Tensor) -> Tensor:
    return panel.float() if panel.dtype == torch.float16 else panel


def _panels(size: int) -> list[slice]:
    return [slice(start, min(start + PANEL, size)) for start in range(0, size, PANEL)]
