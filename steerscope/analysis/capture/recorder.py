"""The hooks of a capture pass: forward they project what is read, backward they fill the features."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import Probes
from steerscope.analysis.capture.rounded import rounded
from steerscope.analysis.data.encoding import Batch, Encoded
from steerscope.equivalence.products import rough_factor, rough_product
from steerscope.equivalence.tangents import combine, combine_blocks, random_projection, split_blocks, vector_tangent
from steerscope.models.blocks import as_token_axes
from steerscope.models.hooks import tapping
from steerscope.models.load import LoadedModel
from steerscope.models.packed import compute_dtype
from steerscope.sites import Site


class Recorder:
    """The hooks of one capture pass and the features they fill."""

    source: Tensor
    slot: int

    def __init__(
        self,
        loaded: LoadedModel,
        encoded: Encoded,
        probes: Probes,
        plan: SketchPlan,
        scales: dict[Site, Tensor],
        seed: int,
    ) -> None:
        self.loaded, self.plan, self.scales, self.probes = loaded, plan, scales, probes
        self.home = loaded.device
        self.dtype = at_least_float32(compute_dtype(loaded.model))
        self.blocks = 1 if plan.exact else plan.blocks
        self.rows, self.slots, k = encoded.num_examples, probes.num_backward, probes.num_probes
        self.residual = torch.zeros(self.rows, k, dtype=torch.float64)
        self.curvature = torch.zeros(self.rows, k, k, dtype=torch.float64)
        self.loss = torch.zeros(self.rows, dtype=torch.float64)
        self.correct = torch.zeros(self.rows, dtype=torch.float64)
        self.linear: dict[Site, Tensor] = {}
        self.vector: dict[Site, Tensor] = {}
        self.weights: dict[Any, Tensor] = {}
        # Per write point ``batch block token site q``: projected reads of the sites that write there.
        self.reads: dict[Site, Tensor] = {}
        # Per layer and group ``batch token channel``: what its linear maps read. Sketched, these and the maps'
        # derivatives are parts of two tensors ``batch token group channel``, so that one product sums over all.
        self.weight_reads: dict[tuple[int, str], Tensor] = {}
        self.weight_grads: dict[tuple[int, str], Tensor] = {}
        self.seed = seed
        # Projections per role and width, and the same as they are multiplied: scaled for a site, in few digits.
        self._drawn: dict[Any, Tensor] = {}
        self._factors: dict[Any, Tensor] = {}

    # --- one batch ---

    def start(self, batch: Batch) -> None:
        """Make ready for a batch's forward pass."""
        self.mask = batch.mask[..., None].to(self.dtype)
        # Rows of a batch stand by length, not by index: what is computed per row goes where its example says.
        self.examples, self.local = torch.unique(batch.example, return_inverse=True)
        self.several = len(self.examples) < len(batch.example)
        if not self.several:
            self.examples = batch.example
        if not self.plan.exact:
            # Linear maps of a block by what they read: those of one group share it.
            names = [(block.index, group) for block in self.loaded.site_map.blocks for group, _ in block.groups()]
            shape = (*batch.ids.shape, len(names), self.plan.weight_size)
            self.all_reads, self.all_grads = torch.zeros(2, *shape, dtype=self.dtype, device=batch.ids.device)
            self.weight_reads = dict(zip(names, self.all_reads.unbind(2), strict=True))
            self.weight_grads = dict(zip(names, self.all_grads.unbind(2), strict=True))

    def start_slot(self, slot: int) -> None:
        """Make ready for one backward pass."""
        self.slot = slot
        if not self.plan.exact:
            self.all_grads.zero_()

    def finish_slot(self) -> None:
        """Keep the sum over weight maps of the backward pass that ended."""
        if not self.plan.exact:
            summed = combine(self.all_grads.flatten(1, 2), self.all_reads.flatten(1, 2))
            self._store(self.weights, "all", summed, rounds=False)

    def finish(self) -> None:
        """Let go of the batch's activations."""
        self.reads.clear()
        self.weight_reads.clear()
        del self.source

    def features(self, valid: Tensor, lengths: Mapping[Site, tuple[float, float]]) -> Features:
        """Return what was recorded, with the typical lengths of what sites read (raw, and scaled).

        Args:
            valid: Which output directions an example has ``(example slot)``.
            lengths: Per site the typical length of what it reads, and of the same divided by its channels' scales.

        Returns:
            The features of all sites, with losses in nats, residuals and Fisher matrices.
        """
        return Features(
            linear=self.linear,
            vector=self.vector,
            weights=list(self.weights.values()),
            residual=self.residual,
            curvature=self.curvature,
            valid=valid,
            loss=self.loss,
            correct=self.correct,
            read_rms={site: float(scale.pow(2).mean().sqrt()) for site, scale in self.scales.items()},
            read_length={site: scaled for site, (_, scaled) in lengths.items()},
            held_length={site: lengths[self._holder(site)][0] for site in lengths if self._write(site) == site},
            spans=self.probes.spans,
            scales=self.scales,
        )

    # --- hooks ---

    def attached(self) -> ExitStack:
        """Set all hooks; closing the stack removes them."""
        stack = ExitStack()
        site_map = self.loaded.site_map
        embeddings = self.loaded.model.get_input_embeddings()  # type: ignore[operator]

        def start_graph(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            # The weights are frozen: the graph begins at the embeddings.
            self.source = output.detach().requires_grad_(True)
            return self.source.clone()  # no leaf of the graph: some models scale it in place

        stack.callback(embeddings.register_forward_hook(start_graph).remove)
        for block in site_map.blocks:
            for group, maps in block.groups():
                for place, (path, module) in enumerate(maps.items()):
                    hook = self._weight_hook(block.index, group, path, reads=place == 0)
                    stack.callback(module.register_forward_hook(hook).remove)
        stack.enter_context(
            tapping(
                site_map,
                {s: self._write_tap(s) if self._write(s) == s else self._read_tap(s) for s in site_map.sites()},
            )
        )
        return stack

    def _write_tap(self, site: Site) -> Callable[[Tensor, Tensor], Tensor]:
        def tap(value: Tensor, read: Tensor) -> Tensor:
            self._read_site(site, read)
            # A node of its own: the derivative is of what flows on through this site alone, not of everything
            # else that uses the same tensor (a norm shared by attention and MLP, the skip past an MLP).
            marked = value.view_as(value)
            marked.register_hook(lambda grad: self._site_grad(site, grad))
            return marked

        return tap

    def _read_tap(self, site: Site) -> Callable[[Tensor, Tensor], None]:
        return lambda value, read: self._read_site(site, read)

    def _write(self, site: Site) -> Site:
        return self.loaded.site_map.write(site)

    def _holder(self, write: Site) -> Site:
        """Return the site that reads what an edit at a write point is added to: the stream, where it is the stream."""
        return Site(write.layer, self.loaded.site_map.blocks[write.layer].description.stream_behind(write.kind))

    def _read_site(self, site: Site, read: Tensor) -> None:
        rows = self.blocks * self.plan.size
        projected = self._project(read.detach(), "site read", rows, self.blocks, scaled_for=site) * self.mask
        split = split_blocks(projected, self.blocks)
        write = self._write(site)
        sites = self.loaded.site_map.written_at(write)
        if write not in self.reads:
            self.reads[write] = split.new_empty(*split.shape[:3], len(sites), split.shape[3])
        self.reads[write][..., sites.index(site), :] = split

    def _site_grad(self, write: Site, grad: Tensor) -> None:
        grad = self._project(grad, "site write", self.blocks * self.plan.size, self.blocks)
        reads = self.reads[write]
        features = combine_blocks(grad, reads.flatten(3)).unflatten(3, reads.shape[3:])
        for place, site in enumerate(self.loaded.site_map.written_at(write)):
            self._store(self.linear, site, features[..., place, :].flatten(1))
        # Every block estimates the whole inner product; side by side they count it once per block.
        self._store(self.vector, write, vector_tangent(grad * self.mask) / math.sqrt(self.blocks))

    def _weight_hook(self, layer: int, group: str, path: str, *, reads: bool) -> Callable[..., Tensor]:
        """Mark a linear map's output, and with ``reads`` record its input (once per group of maps that share it).

        Returns:
            A forward hook for the linear map.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                return output  # a map that only chooses (which tokens attention looks at) has no derivative
            if reads:
                read = as_token_axes(args[0].detach(), *self.mask.shape[:2])
                projected = self._project(read, (layer, group), self.plan.weight_size) * self.mask
                if self.plan.exact:
                    self.weight_reads[layer, group] = projected
                else:
                    self.weight_reads[layer, group].copy_(projected)
            marked = output.view_as(output)
            marked.register_hook(lambda grad: self._weight_grad(layer, group, path, grad))
            return marked

        return hook

    def _weight_grad(self, layer: int, group: str, path: str, grad: Tensor) -> None:
        # Sketched features of all maps are summed, so maps must meet in independent directions: those that share
        # what they read differ in ``path``, those in other layers or groups in how what they read was projected.
        grad = self._project(as_token_axes(grad, *self.mask.shape[:2]), path, self.plan.weight_size)
        if self.plan.exact:
            self._store(self.weights, (layer, path), combine(grad, self.weight_reads[layer, group]))
        else:
            self.weight_grads[layer, group].add_(grad)

    # --- projections and storage ---

    def _project(self, tensor: Tensor, role: Any, rows: int, blocks: int = 1, scaled_for: Site | None = None) -> Tensor:
        """Project the channels of a tensor: one projection per role and width.

        With ``scaled_for``, channels are divided by the scale of what that site reads first. Padding is left as it
        is: callers clear it in one factor of every product, where the tensor is small (activations are finite).

        Returns:
            The projected channels ``(... rows * blocks)``, or all of them where the plan is exact.
        """
        tensor = tensor.to(self.home)  # layers may be on several devices
        if self.plan.exact:
            tensor = tensor.to(self.dtype)
            return tensor if scaled_for is None else tensor / self.scales[scaled_for].to(self.dtype)
        width = tensor.shape[-1]
        if (role, width) not in self._drawn:
            # Seeded by role, not by the order of use, so that no other choice moves a projection.
            seed = zlib.crc32(repr((self.seed, role, width)).encode())
            drawn = random_projection(rows, width, blocks=blocks, generator=torch.Generator().manual_seed(seed))
            self._drawn[role, width] = drawn.T.contiguous().to(tensor.device, self.dtype)
        key = (role, width, scaled_for)
        if key not in self._factors:
            drawn = self._drawn[role, width]
            if scaled_for is not None:
                drawn = drawn / self.scales[scaled_for].to(self.dtype)[:, None]
            self._factors[key] = rough_factor(drawn, self.dtype)
        return rough_product(tensor, self._factors[key], self.dtype)

    def _store(self, into: dict[Any, Tensor], key: Any, feature: Tensor, *, rounds: bool = True) -> None:
        """Put features in the rows of their examples, summed where an example has several sequences.

        With ``rounds``, sketches are rounded to eight bits: far below their own error. Exact features keep all digits.
        """
        if self.several:
            feature = feature.new_zeros(len(self.examples), feature.shape[1]).index_add_(0, self.local, feature)
        feature = rounded(feature) if rounds and not self.plan.exact else feature.to(self.dtype)
        if key not in into:
            # Every row is written once, by its batch; memory that is not written yet takes no room.
            into[key] = feature.new_empty(self.rows, self.slots, feature.shape[1])
        into[key][self.examples, self.slot] = feature


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute features in: half precisions are widened."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
