"""Exact features of one capture pass: whole matrices of derivatives, made where hooks see them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steerscope.analysis.capture.stored import BatchRows, Stored
from steerscope.equivalence.tangents import combine, vector_tangent
from steerscope.sites import Site


class ExactParts(Stored):
    """What a batch reads, and the features of sites, vectors and single weight maps that come of it.

    Args:
        written_at: Per write point the sites whose edits are added there.
        scales: Per site ``channel``: what its reads are divided by.
        shape: Rows and slots of all features.
        dtype: What features are computed in.
        home: Device of the features.
    """

    def __init__(
        self,
        written_at: dict[Site, list[Site]],
        scales: dict[Site, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        home: torch.device,
    ) -> None:
        super().__init__(shape)
        self.written_at, self.scales, self.dtype, self.home = written_at, scales, dtype, home
        self.reads: dict[Site, Tensor] = {}
        self.map_reads: dict[tuple[int, str], Tensor] = {}

    def start(self, rows: BatchRows) -> None:
        """Make ready for a batch's forward pass."""
        self.batch, self.mask = rows, rows.mask[..., None].to(self.dtype)

    def start_slot(self, slot: int) -> None:
        """Make ready for one backward pass."""
        self.slot = slot

    def finish_slot(self) -> None:
        """Do nothing: features are made as derivatives come."""

    def finish(self) -> None:
        """Let go of the batch's activations."""
        self.reads.clear()
        self.map_reads.clear()

    def read_site(self, site: Site, read: Tensor) -> None:
        """Keep what a site reads ``batch token channel``.

        Args:
            site: The site.
            read: ``batch token channel``.
        """
        self.reads[site] = self._wide(read) / self.scales[site].to(self.dtype) * self.mask

    def read_maps(self, layer: int, group: str, read: Tensor) -> None:
        """Keep what a group of linear maps reads.

        Args:
            layer: Their block.
            group: Which maps of the block.
            read: ``batch token channel``.
        """
        self.map_reads[layer, group] = self._wide(read) * self.mask

    def grad_of_site(self, write: Site, grad: Tensor) -> None:
        """Make features from the derivative by what is added at a write point.

        Args:
            write: The write point.
            grad: ``batch token channel``.
        """
        self.reached.add(write)
        grad = self._wide(grad)
        for site in self.written_at[write]:
            self._keep(self.linear, site, combine(grad, self.reads[site]))
        self._keep(self.vector, write, vector_tangent(grad * self.mask))

    def grad_of_map(self, layer: int, group: str, path: str, grad: Tensor) -> None:
        """Make features from the derivative by a linear map's output.

        Args:
            layer: Its block.
            group: Which maps share what it reads.
            path: The map inside the block.
            grad: ``batch token channel``.
        """
        self._keep(self.weights, (layer, path), combine(self._wide(grad), self.map_reads[layer, group]))

    def _keep(self, into: dict[Any, Tensor], key: Any, feature: Tensor) -> None:
        self.keep(into, key, self.batch.by_example(feature[None])[0], self.slot)

    def _wide(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.home, self.dtype)  # layers may be on several devices
