"""The hooks of a capture pass: forward they project what is read, backward they fill the features."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.encoding import Batch, Encoded
from steerscope.analysis.features import Features, SketchPlan
from steerscope.analysis.outputs import Probes
from steerscope.equivalence.tangents import combine, random_projection, vector_tangent
from steerscope.models.blocks import as_token_axes
from steerscope.models.hooks import tapping
from steerscope.models.load import LoadedModel
from steerscope.sites import Site, SiteKind

# Which sites read where a write point's derivative applies.
READS: dict[SiteKind, tuple[SiteKind, ...]] = {
    SiteKind.RESID_PRE: (SiteKind.RESID_PRE,),
    SiteKind.ATTN_HEADS: (SiteKind.ATTN_HEADS,),
    SiteKind.ATTN_OUT: (SiteKind.ATTN_OUT, SiteKind.RESID_MID),
    SiteKind.MLP_IN: (SiteKind.MLP_IN,),
    SiteKind.MLP_HIDDEN: (SiteKind.MLP_HIDDEN,),
    SiteKind.MLP_OUT: (SiteKind.MLP_OUT, SiteKind.RESID_POST),
}


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
        self.dtype = at_least_float32(next(p.dtype for p in loaded.model.parameters() if p.is_floating_point()))
        # A bfloat16 feature's rounding (1 in 500) is far below a sketch's own error; exact features keep all digits.
        self.stored = self.dtype if plan.exact else torch.bfloat16
        self.rows, self.slots, k = encoded.num_examples, probes.num_backward, probes.num_probes
        self.residual = torch.zeros(self.rows, k, dtype=torch.float64)
        self.curvature = torch.zeros(self.rows, k, k, dtype=torch.float64)
        self.loss = torch.zeros(self.rows, dtype=torch.float64)
        self.correct = torch.zeros(self.rows, dtype=torch.float64)
        self.linear: dict[Site, Tensor] = {}
        self.vector: dict[Site, Tensor] = {}
        self.weights: dict[Any, Tensor] = {}
        self.reads: dict[Any, Tensor] = {}
        self.seed = seed
        self._drawn: dict[Any, Tensor] = {}

    # --- one batch ---

    def start(self, batch: Batch) -> None:
        """Make ready for a batch's forward pass."""
        self.mask = batch.mask[..., None].to(self.dtype)
        # Rows of a batch stand by length, not by index: what is computed per row goes where its example says.
        self.examples, self.local = torch.unique(batch.example, return_inverse=True)
        self.reads.clear()

    def start_slot(self, slot: int) -> None:
        """Make ready for one backward pass."""
        self.slot = slot
        self.weight_sum: Tensor | None = None

    def finish_slot(self) -> None:
        """Keep the sum over weight maps of the backward pass that ended."""
        if self.weight_sum is not None:
            self._store(self.weights, "all", self.weight_sum, self.dtype)

    def finish(self) -> None:
        """Let go of the batch's activations."""
        self.reads.clear()
        del self.source

    def features(self, valid: Tensor) -> Features:
        """Return what was recorded."""
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
            spans=self.probes.spans,
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
            return self.source

        stack.callback(embeddings.register_forward_hook(start_graph).remove)
        for block in site_map.blocks:
            groups = {"attn_in": block.attn_reads, "attn_heads": (block.attn_write,)}
            groups |= {"mlp_in": block.mlp_reads, "mlp_hidden": (block.mlp_write,)}
            paths = {module: path for path, module in block.linear_maps().items()}
            for group, modules in groups.items():
                for module in modules:
                    hook = self._weight_hook(block.index, group, paths[module], module)
                    stack.callback(module.register_forward_hook(hook).remove)
        stack.enter_context(
            tapping(
                site_map,
                {s: self._write_tap(s) if s.kind in READS else self._read_tap(s) for s in site_map.sites()},
            )
        )
        return stack

    def _write_tap(self, site: Site) -> Callable[[Tensor, Tensor], Tensor]:
        kinds = self.loaded.site_map.description.kinds
        sites = [Site(site.layer, kind) for kind in READS[site.kind] if kind in kinds]

        def tap(value: Tensor, read: Tensor) -> Tensor:
            self._read_site(site, read)
            # A node of its own: the derivative is of what flows on through this site alone, not of everything
            # else that uses the same tensor (a norm shared by attention and MLP, the skip past an MLP).
            marked = value.view_as(value)
            marked.register_hook(lambda grad: self._site_grad(site, sites, grad))
            return marked

        return tap

    def _read_tap(self, site: Site) -> Callable[[Tensor, Tensor], None]:
        return lambda value, read: self._read_site(site, read)

    def _read_site(self, site: Site, read: Tensor) -> None:
        blocks = 1 if self.plan.exact else self.plan.blocks
        rows = blocks * self.plan.size
        self.reads[site] = self._project(read.detach(), "site read", rows, blocks, scaled_for=site)

    def _site_grad(self, write: Site, sites: list[Site], grad: Tensor) -> None:
        blocks = 1 if self.plan.exact else self.plan.blocks
        grad = self._project(grad, "site write", blocks * self.plan.size, blocks)
        for site in sites:
            self._store(self.linear, site, combine(grad, self.reads[site], blocks))
        # Every block estimates the whole inner product; side by side they count it once per block.
        self._store(self.vector, write, vector_tangent(grad) / math.sqrt(blocks))

    def _weight_hook(self, layer: int, group: str, path: str, module: nn.Module) -> Callable[..., Tensor]:
        """Read a linear map's input after it ran (once per group of maps that share it) and mark its output."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if (layer, group) not in self.reads:
                read = as_token_axes(args[0].detach(), *self.mask.shape[:2])
                self.reads[layer, group] = self._project(read, (layer, group), self.plan.weight_size)
            marked = output.view_as(output)
            marked.register_hook(lambda grad: self._weight_grad(layer, group, path, grad))
            return marked

        return hook

    def _weight_grad(self, layer: int, group: str, path: str, grad: Tensor) -> None:
        # Sketched features of all maps are summed, so maps must meet in independent directions: those that share
        # what they read differ in ``path``, those in other layers or groups in how what they read was projected.
        grad = self._project(as_token_axes(grad, *self.mask.shape[:2]), path, self.plan.weight_size)
        feature = combine(grad, self.reads[layer, group])
        if self.plan.exact:
            self._store(self.weights, (layer, path), feature)
        else:
            self.weight_sum = feature if self.weight_sum is None else self.weight_sum.add_(feature)

    # --- projections and storage ---

    def _project(self, tensor: Tensor, role: Any, rows: int, blocks: int = 1, scaled_for: Site | None = None) -> Tensor:
        """Project the channels of a tensor (one projection per role and width) and clear its padding.

        With ``scaled_for``, channels are divided by the scale of what that site reads first.
        """
        tensor = tensor.to(self.dtype)
        if self.plan.exact:
            scaled = tensor if scaled_for is None else tensor / self.scales[scaled_for].to(self.dtype)
            return scaled * self.mask
        width = tensor.shape[-1]
        if (role, width) not in self._drawn:
            # Seeded by role, not by the order of use, so that no other choice moves a projection.
            seed = zlib.crc32(repr((self.seed, role, width)).encode())
            drawn = random_projection(rows, width, blocks=blocks, generator=torch.Generator().manual_seed(seed))
            self._drawn[role, width] = drawn.T.contiguous().to(tensor)
        key = (role, width) if scaled_for is None else (role, width, scaled_for)
        if key not in self._drawn and scaled_for is not None:
            self._drawn[key] = self._drawn[role, width] / self.scales[scaled_for].to(self.dtype)[:, None]
        # The padding is cleared afterwards, where the tensor is smaller; its activations are finite.
        return (tensor @ self._drawn[key]) * self.mask

    def _store(self, into: dict[Any, Tensor], key: Any, feature: Tensor, dtype: torch.dtype | None = None) -> None:
        """Sum an example's sequences and put the result in its row."""
        feature = feature.new_zeros(len(self.examples), feature.shape[1]).index_add_(0, self.local, feature)
        dtype = dtype or self.stored
        if key not in into:
            into[key] = torch.zeros(self.rows, self.slots, feature.shape[1], dtype=dtype, device=feature.device)
        into[key][self.examples, self.slot] = feature.to(dtype)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute features in: half precisions are widened."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
