"""Sketched features of one capture pass: hooks only project, and a pass's features are made together at its end.

A hook that made the features of its site would run some sixty small operations, 361 times in a backward pass of a model
of 30 blocks. So a hook multiplies once, into its place of a buffer, and what follows (products of derivatives and
reads, rounding to eight bits) is done for many sites in one operation.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.rounded import rounded_over
from steerscope.analysis.capture.stored import BatchRows, Stored
from steerscope.equivalence.products import rough_dtype, rough_factor
from steerscope.equivalence.tangents import random_projection
from steerscope.sites import Site

# Numbers of features that are made in one operation: few enough for a processor's cache, many for a GPU.
_AT_ONCE = {"cpu": 2**19}
_AT_ONCE_ELSEWHERE = 2**23


class SketchedParts(Stored):
    """What hooks project in a batch, and the features of sites, vectors and weights that come of it.

    Args:
        groups: Linear maps by block and by what they read (those of one group share it), if their features are wanted.
        written_at: Per write point the sites whose edits are added there.
        scales: Per site ``channel``: what its reads are divided by.
        plan: Size of the sketches.
        shape: Rows and slots of all features.
        dtype: What features are computed in.
        home: Device of the features.
        seed: Seed of the projections.
    """

    # What a tensor was known by, the tensor, and it in few digits.
    _latest: tuple[Any, Tensor, Tensor] | None = None

    def __init__(
        self,
        groups: Sequence[tuple[int, str]],
        written_at: dict[Site, list[Site]],
        scales: dict[Site, Tensor],
        plan: SketchPlan,
        shape: tuple[int, int],
        dtype: torch.dtype,
        home: torch.device,
        seed: int,
    ) -> None:
        super().__init__(shape)
        self.scales, self.plan, self.dtype, self.home, self.seed = scales, plan, dtype, home, seed
        # Most sites first, so that those of one place in the lists are the first of the write points.
        self.writes = sorted(written_at, key=lambda write: -len(written_at[write]))
        self.written_at = written_at
        most = max(map(len, written_at.values()), default=0)
        self.by_place = [
            [written_at[write][place] for write in self.writes if len(written_at[write]) > place]
            for place in range(most)
        ]
        self._write_number = {write: number for number, write in enumerate(self.writes)}
        self._site_number = {
            site: (place, number) for place, sites in enumerate(self.by_place) for number, site in enumerate(sites)
        }
        self._group_number = {name: number for number, name in enumerate(groups)}
        # Projections as they are multiplied: scaled for a site, in few digits.
        self._drawn: dict[Any, Tensor] = {}
        self._factors: dict[Any, Tensor] = {}

    # --- one batch ---

    def start(self, rows: BatchRows) -> None:
        """Make room for what a batch reads and derives."""
        self.batch, plan = rows, self.plan
        batch, tokens = rows.mask.shape
        self.digits = rough_dtype(self.dtype, self.home)
        self.mask = rows.mask.to(self.digits)

        def room(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self.digits, device=self.home)

        # Reads are split into blocks once for all backward passes: ``site batch block token q``.
        self.reads = [room(len(sites), batch, plan.blocks, tokens, plan.size) for sites in self.by_place]
        self.grads = room(len(self.writes), batch * tokens, plan.blocks * plan.size)
        self.map_reads = room(batch, len(self._group_number), tokens, plan.weight_size)
        self.map_grads = room(len(self._group_number), batch * tokens, plan.weight_size)
        # Sums over the tokens of an example: ``example batch*token``.
        self.sums = torch.zeros(len(rows.examples), batch, tokens, dtype=self.dtype, device=self.home)
        self.sums[rows.local, torch.arange(batch, device=self.home)] = rows.mask.to(self.dtype)
        self.sums = self.sums.flatten(1)
        self._forget()

    def start_slot(self, slot: int) -> None:
        """Make ready for one backward pass."""
        self.slot = slot
        self._seen: set[Any] = set()
        self._forget()

    def finish(self) -> None:
        """Let go of the batch."""
        del self.reads, self.grads, self.map_reads, self.map_grads, self.sums
        self._forget()

    # --- what hooks bring ---

    def read_site(self, site: Site, read: Tensor) -> None:
        """Project what a site reads ``batch token channel``.

        Args:
            site: The site.
            read: ``batch token channel``.
        """
        place, number = self._site_number[site]
        size = self.plan.blocks * self.plan.size
        projected = self.few_digits(read) @ self._factor("site read", read.shape[-1], size, self.plan.blocks, site)
        split = projected.view(*self.mask.shape, self.plan.blocks, self.plan.size).transpose(1, 2)
        torch.mul(split, self.mask[:, None, :, None], out=self.reads[place][number])

    def read_maps(self, layer: int, group: str, read: Tensor) -> None:
        """Project what a group of linear maps reads.

        Args:
            layer: Their block.
            group: Which maps of the block.
            read: ``batch token channel``.
        """
        projected = self.few_digits(read) @ self._factor((layer, group), read.shape[-1], self.plan.weight_size)
        out = self.map_reads[:, self._group_number[layer, group]]
        torch.mul(projected.view(*self.mask.shape, -1), self.mask[..., None], out=out)

    def grad_of_site(self, write: Site, grad: Tensor) -> None:
        """Project the derivative by what is added at a write point.

        Args:
            write: The write point.
            grad: ``batch token channel``.
        """
        factor = self._factor("site write", grad.shape[-1], self.plan.blocks * self.plan.size, self.plan.blocks)
        torch.mm(self.few_digits(grad), factor, out=self.grads[self._write_number[write]])
        self._seen.add(write)
        self.reached.add(write)

    def grad_of_map(self, layer: int, group: str, path: str, grad: Tensor) -> None:
        """Project the derivative by a linear map's output.

        Args:
            layer: Its block.
            group: Which maps share what it reads.
            path: The map inside the block.
            grad: ``batch token channel``.
        """
        # Sketched features of all maps are summed, so maps must meet in independent directions: those that share
        # what they read differ in ``path``, those in other layers or groups in how what they read was projected.
        grad, out = self.few_digits(grad), self.map_grads[self._group_number[layer, group]]
        factor = self._factor(path, grad.shape[-1], self.plan.weight_size)
        if (layer, group) in self._seen:
            out.addmm_(grad, factor)
        else:
            torch.mm(grad, factor, out=out)
        self._seen.add((layer, group))

    # --- the features of a backward pass ---

    def finish_slot(self) -> None:
        """Make and keep the features of the backward pass that ended."""
        self._forget()
        for buffer, places in ((self.grads, self._write_number), (self.map_grads, self._group_number)):
            for name, place in places.items():
                if name not in self._seen:  # no way leads from there to an output
                    buffer[place].zero_()
        self._keep_weights()
        numbers = len(self.mask) * self.plan.blocks * self.plan.size**2
        step = max(1, _AT_ONCE.get(self.home.type, _AT_ONCE_ELSEWHERE) // numbers)
        for start in range(0, len(self.writes), step):
            self._keep_sites(slice(start, start + step))

    def _keep_weights(self) -> None:
        if not self._group_number:
            return
        batch, tokens = self.mask.shape
        grads = self.map_grads.unflatten(1, (batch, tokens)).transpose(0, 1).flatten(1, 2)
        summed = (grads.mT @ self.map_reads.flatten(1, 2)).flatten(1).to(self.dtype)
        self.keep(self.weights, "all", self.batch.by_example(summed[None])[0], self.slot)

    def _keep_sites(self, part: slice) -> None:
        batch, tokens = self.mask.shape
        writes, plan = self.writes[part], self.plan
        grads = self.grads[part]
        # Every block estimates the whole inner product; side by side they count it once per block.
        share = 1 / math.sqrt(plan.blocks)
        vectors = rounded_over(self.sums @ grads.to(self.dtype), share)
        for write, vector in zip(writes, vectors, strict=True):
            self.keep(self.vector, write, vector, self.slot)
        split = grads.view(len(writes), batch, tokens, plan.blocks, plan.size).transpose(2, 3)
        wide = split.to(self.dtype, memory_format=torch.contiguous_format)
        for sites, reads in zip(self.by_place, self.reads, strict=True):
            sites = sites[part]
            if not sites:
                break
            read = reads[part].to(self.dtype).view(-1, tokens, plan.size)
            made = torch.bmm(wide[: len(sites)].reshape(-1, tokens, plan.size).mT, read)
            features = rounded_over(self.batch.by_example(made.view(len(sites), batch, -1)), share)
            for site, feature in zip(sites, features, strict=True):
                self.keep(self.linear, site, feature, self.slot)

    # --- projections ---

    def few_digits(self, tensor: Tensor) -> Tensor:
        """Return a tensor as it is multiplied, ``batch*token channel``; the latest is kept for whoever is next to ask.

        Sites and maps that follow each other often see the same tensor. It is held until another comes, so that no
        other tensor can be at its address, and nothing writes over it.
        """
        key = (tensor.data_ptr(), tensor.shape[-1], tensor.numel(), tensor.stride(), tensor.dtype, tensor._version)
        if self._latest is None or self._latest[0] != key:
            flat = tensor.to(self.home).reshape(-1, tensor.shape[-1])
            self._latest = key, tensor, rough_factor(flat, self.dtype)
        found: Tensor = self._latest[2]
        return found

    def _forget(self) -> None:
        self._latest = None

    def _factor(self, role: Any, width: int, rows: int, blocks: int = 1, scaled_for: Site | None = None) -> Tensor:
        """Return the projection ``width rows`` of a role; for reads, channels are divided by the site's scale first."""
        key = (role, width, scaled_for)
        if key not in self._factors:
            drawn = self._draw(role, width, rows, blocks)
            if scaled_for is not None:
                drawn = drawn / self.scales[scaled_for].to(self.dtype)[:, None]
            self._factors[key] = rough_factor(drawn, self.dtype)
        return self._factors[key]

    def _draw(self, role: Any, width: int, rows: int, blocks: int) -> Tensor:
        if (role, width) not in self._drawn:
            # Seeded by role, not by the order of use, so that no other choice moves a projection.
            seed = zlib.crc32(repr((self.seed, role, width)).encode())
            drawn = random_projection(rows, width, blocks=blocks, generator=torch.Generator().manual_seed(seed))
            drawn = drawn.T.contiguous().to(self.home, self.dtype)
            if role != "site read":  # these alone are used again, scaled for other sites
                return drawn
            self._drawn[role, width] = drawn
        return self._drawn[role, width]
