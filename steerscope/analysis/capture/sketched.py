"""Sketched features of one capture pass: hooks only project, and a pass's features are made together at its end.

A hook that made the features of its site would run some sixty small operations, 361 times in a backward pass of a model
of 30 blocks. So a hook multiplies once, into its place of a buffer, and what follows (products of derivatives and
reads, rounding to eight bits) is done for many sites in one operation.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass
class _Pass:
    """One backward pass: its slot, the projected derivatives ``where batch*token projected``, and whose came."""

    slot: int
    grads: Tensor
    map_grads: Tensor
    seen: set[Any] = field(default_factory=set)

    def begin(self, slot: int) -> None:
        """Begin another one in the same room."""
        self.slot = slot
        self.seen.clear()


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
        # By thread: the backward pass that it makes; and of its latest tensor what it was known by, itself, few digits.
        self._passes: dict[int, _Pass] = {}
        self._latest: dict[int, tuple[Any, Tensor, Tensor]] = {}
        # Projections: as they are drawn where they are scaled for a site, else as they are multiplied, in few digits.
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
        self.map_reads = room(batch, len(self._group_number), tokens, plan.weight_size)
        # Sums over the tokens of an example: ``example batch*token``.
        self.sums = torch.zeros(len(rows.examples), batch, tokens, dtype=self.dtype, device=self.home)
        self.sums[rows.local, torch.arange(batch, device=self.home)] = rows.mask.to(self.dtype)
        self.sums = self.sums.flatten(1)
        self._passes.clear()
        self._latest.clear()

    def start_slot(self, slot: int) -> None:
        """Make ready for one backward pass, which this thread makes."""
        here = threading.get_ident()
        if here in self._passes:  # its room is used again
            self._passes[here].begin(slot)
            return
        plan, size = self.plan, self.mask.numel()
        grads = torch.zeros(len(self.writes), size, plan.blocks * plan.size, dtype=self.digits, device=self.home)
        map_grads = torch.zeros(len(self._group_number), size, plan.weight_size, dtype=self.digits, device=self.home)
        self._passes[here] = _Pass(slot, grads, map_grads)

    def finish(self) -> None:
        """Let go of the batch."""
        del self.reads, self.map_reads, self.sums
        self._passes.clear()
        self._latest.clear()

    @property
    def _now(self) -> _Pass:
        """The backward pass that this thread is in; the only one where a device derives in a thread of its own."""
        found = self._passes.get(threading.get_ident())
        if found is None:
            (found,) = self._passes.values()
        return found

    # --- what hooks bring ---

    def read_site(self, site: Site, read: Tensor) -> None:
        """Project what a site reads ``batch token channel``.

        Args:
            site: The site.
            read: ``batch token channel``.
        """
        place, number = self._site_number[site]
        projected = self.few_digits(read) @ self._read_factor(site, read.shape[-1])
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
        now = self._now
        torch.mm(self.few_digits(grad), factor, out=now.grads[self._write_number[write]])
        now.seen.add(write)
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
        now = self._now
        grad, out = self.few_digits(grad), now.map_grads[self._group_number[layer, group]]
        factor = self._factor(path, grad.shape[-1], self.plan.weight_size)
        if (layer, group) in now.seen:
            out.addmm_(grad, factor)
        else:
            torch.mm(grad, factor, out=out)
        now.seen.add((layer, group))

    # --- the features of a backward pass ---

    def finish_slot(self) -> None:
        """Make and keep the features of the backward pass of this thread, which ended."""
        now = self._now
        self._latest.pop(threading.get_ident(), None)
        for buffer, places in ((now.grads, self._write_number), (now.map_grads, self._group_number)):
            for name, place in places.items():
                if name not in now.seen:  # no way leads from there to an output
                    buffer[place].zero_()
        self._keep_weights(now)
        numbers = len(self.mask) * self.plan.blocks * self.plan.size**2
        step = max(1, _AT_ONCE.get(self.home.type, _AT_ONCE_ELSEWHERE) // numbers)
        for start in range(0, len(self.writes), step):
            self._keep_sites(now, slice(start, start + step))

    def _keep_weights(self, now: _Pass) -> None:
        if not self._group_number:
            return
        batch, tokens = self.mask.shape
        grads = now.map_grads.unflatten(1, (batch, tokens)).transpose(0, 1).flatten(1, 2)
        summed = (grads.mT @ self.map_reads.flatten(1, 2)).flatten(1).to(self.dtype)
        self.keep(self.weights, "all", rounded_over(self.batch.by_example(summed[None])[0]), now.slot)

    def _keep_sites(self, now: _Pass, part: slice) -> None:
        batch, tokens = self.mask.shape
        writes, plan = self.writes[part], self.plan
        grads = now.grads[part]
        # Every block estimates the whole inner product; side by side they count it once per block.
        share = 1 / math.sqrt(plan.blocks)
        vectors = rounded_over(self.sums @ grads.to(self.dtype), share)
        for write, vector in zip(writes, vectors, strict=True):
            self.keep(self.vector, write, vector, now.slot)
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
                self.keep(self.linear, site, feature, now.slot)

    # --- projections ---

    def few_digits(self, tensor: Tensor) -> Tensor:
        """Return a tensor as it is multiplied, ``batch*token channel``; the latest is kept for whoever is next to ask.

        Sites and maps that follow each other often see the same tensor. It is held until another comes, so that no
        other tensor can be at its address, and nothing writes over it.
        """
        here, known = threading.get_ident(), (tensor.data_ptr(), tensor.shape[-1], tensor.numel(), tensor.stride())
        key = (*known, tensor.dtype, tensor._version)
        latest = self._latest.get(here)
        if latest is None or latest[0] != key:
            flat = tensor.to(self.home).reshape(-1, tensor.shape[-1])
            latest = self._latest[here] = key, tensor, rough_factor(flat, self.dtype)
        return latest[2]

    def _factor(self, role: Any, width: int, rows: int, blocks: int = 1) -> Tensor:
        """Return the projection ``width rows`` of a role."""
        if (role, width) not in self._factors:
            self._factors[role, width] = rough_factor(self._draw(role, width, rows, blocks), self.dtype)
        return self._factors[role, width]

    def _read_factor(self, site: Site, width: int) -> Tensor:
        """Return the projection of what a site reads, whose channels are divided by the site's scale first.

        It is made for every batch: kept, those of all sites would take 40 MB of a 135M model's ranking.
        """
        drawn = self._draw("site read", width, self.plan.blocks * self.plan.size, self.plan.blocks)
        return rough_factor(drawn / self.scales[site].to(self.dtype)[:, None], self.dtype)

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
