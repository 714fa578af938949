"""One pass over the examples that records what every kernel needs, for all sites and all weights together.

Forward hooks project what is read (by sites and by weight matrices), gradient hooks project what is derived,
and the two meet in the features of each probe at once, so that neither activations nor gradients outlive a
batch. Memory: ``examples x backward passes x feature length`` numbers per site (bfloat16 when sketched), the
same for the sum over weights, and one batch's graph. The exact bound is :func:`feature_bytes`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.encoding import Batch, Encoded, batches
from steerscope.analysis.outputs import Probes, batch_outputs, selected_positions
from steerscope.equivalence.tangents import combine, random_projection, vector_tangent
from steerscope.models.blocks import as_token_axes, linear_shape
from steerscope.models.hooks import reading, tapping
from steerscope.models.load import LoadedModel
from steerscope.sites import Site, SiteKind

# Called with (passes done, passes in all) as work goes on.
Progress = Callable[[int, int], None]

# Which sites read where a write point's derivative applies.
READS: dict[SiteKind, tuple[SiteKind, ...]] = {
    SiteKind.RESID_PRE: (SiteKind.RESID_PRE,),
    SiteKind.ATTN_HEADS: (SiteKind.ATTN_HEADS,),
    SiteKind.ATTN_OUT: (SiteKind.ATTN_OUT, SiteKind.RESID_MID),
    SiteKind.MLP_IN: (SiteKind.MLP_IN,),
    SiteKind.MLP_HIDDEN: (SiteKind.MLP_HIDDEN,),
    SiteKind.MLP_OUT: (SiteKind.MLP_OUT, SiteKind.RESID_POST),
}


@dataclass(frozen=True)
class Features:
    """What one capture pass recorded. ``row`` is the axis of examples, ``slot`` of probes and loss direction.

    Attributes:
        linear: Per site ``row slot feature``: tangent features of the linear edit.
        vector: Per write point ``row slot feature``: those of the fixed vector.
        weights: ``row slot feature``: features of all linear maps of all blocks together (their inner
            products are K_FT); a list of one entry per map when exact.
        residual: ``row probe``: (one-hot minus softmax) along each probe.
        curvature: ``row probe probe``: the softmax's Fisher matrix.
        valid: ``row probe``: which probes an example has.
        loss: ``row``: loss in nats.
        correct: ``row``: whether the model was right.
        read_rms: Per site the root mean square of what it reads.
        spans: Whether the probes span the outputs: then the loss direction is a combination of them and
            has no slot of its own.
    """

    linear: dict[Site, Tensor]
    vector: dict[Site, Tensor]
    weights: list[Tensor]
    residual: Tensor
    curvature: Tensor
    valid: Tensor
    loss: Tensor
    correct: Tensor
    read_rms: dict[Site, float]
    spans: bool


@dataclass(frozen=True)
class SketchPlan:
    """How long features are.

    ``exact`` keeps the full matrices. Otherwise a site's feature is ``blocks`` blocks of ``size x size`` and
    a weight matrix's one block of ``weight_size x weight_size``; a site narrower than ``size`` channels costs
    no more than it has.
    """

    exact: bool
    blocks: int = 8
    size: int = 16
    weight_size: int = 80

    def describe(self) -> str:
        """Return the plan in words."""
        if self.exact:
            return "exact"
        return (
            f"sketched: sites {self.blocks} blocks of {self.size} x {self.size}, "
            f"weights {self.weight_size} x {self.weight_size} summed over all maps"
        )


def feature_bytes(loaded: LoadedModel, rows: int, slots: int, plan: SketchPlan, itemsize: int) -> int:
    """Return the memory that features of ``rows`` examples need, in bytes (the capture's stated bound)."""
    site_map = loaded.site_map
    numbers = 0
    for site in site_map.sites():
        width = site_map.width(site)
        numbers += width * width if plan.exact else plan.blocks * plan.size**2
        if site.write == site:
            numbers += width if plan.exact else plan.blocks * plan.size
    if plan.exact:
        for module in site_map.linear_maps().values():
            d_out, d_in = linear_shape(module)
            numbers += d_out * d_in
        return numbers * rows * slots * itemsize
    return (numbers * 2 + plan.weight_size**2 * 4) * rows * slots


def read_scales(loaded: LoadedModel, encoded: Encoded, *, batch_size: int, max_examples: int) -> dict[Site, Tensor]:
    """Return, per site, the root mean square over tokens of every channel it reads (``channel``).

    Measured on the first ``max_examples`` examples in one forward pass. Channels that never vary from zero
    get the smallest positive scale, so that dividing by it is safe.
    """
    sites = loaded.site_map.sites()
    sums: dict[Site, Tensor] = {}
    count = 0
    chosen = range(min(max_examples, encoded.num_examples))
    pad = _pad_id(loaded)
    with torch.no_grad(), reading(loaded.site_map, sites) as found:
        for batch in batches(encoded, batch_size=batch_size, pad_id=pad, device=loaded.device, examples=chosen):
            with selected_positions(loaded.model, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)):
                loaded.model(
                    input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
                )
            real = batch.mask[..., None].bool()
            for site, value in found.items():
                square = torch.where(real, value, 0.0).to(_at_least_float32(value.dtype)).pow(2).sum((0, 1))
                sums[site] = sums[site] + square if site in sums else square
            count += int(batch.mask.sum())
    scales = {}
    for site, total in sums.items():
        rms = (total / count).sqrt()
        scales[site] = rms.clamp_min(max(1e-6 * float(rms.max()), 1e-30))
    return scales


def capture(
    loaded: LoadedModel,
    encoded: Encoded,
    probes: Probes,
    plan: SketchPlan,
    *,
    seed: int,
    batch_size: int,
    padding_side: str = "right",
    scale_examples: int = 64,
    progress: Progress | None = None,
) -> Features:
    """Record the features of all sites and weights in one pass over the examples.

    Args:
        loaded: Model, tokenizer and sites.
        encoded: Tokenised examples.
        probes: Which outputs are differentiated.
        plan: Exact features or sketches.
        seed: Seed of the sketches.
        batch_size: Sequences per batch; changes no number beyond rounding.
        padding_side: ``left`` or ``right``; changes no number beyond rounding.
        scale_examples: Examples on which the channels' scales are measured first (one forward pass).
        progress: Called after every forward or backward pass.

    Returns:
        The features, rows in the order of ``encoded``'s examples.

    Cost: one forward pass and ``probes.num_backward`` backward passes to activations, plus the projections
    (about a quarter of that on a 135M model), plus the forward pass for the scales.
    """
    scales = read_scales(loaded, encoded, batch_size=batch_size, max_examples=scale_examples)
    recorder = _Recorder(loaded, encoded, probes, plan, scales, seed)
    total_batches = list(
        batches(
            encoded,
            batch_size=batch_size,
            pad_id=_pad_id(loaded),
            device=loaded.device,
            padding_side=padding_side,
        )
    )
    passes, done = len(total_batches) * (1 + probes.num_backward), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, passes)

    with recorder.attached(), torch.enable_grad():
        for batch in total_batches:
            recorder.start(batch)
            outputs = batch_outputs(loaded.model, batch, encoded, probes)
            tick()
            index = outputs.examples.cpu()
            recorder.residual[index] = outputs.residual.to(recorder.residual)
            recorder.curvature[index] = outputs.curvature.to(recorder.curvature)
            recorder.loss[index] = -outputs.log_likelihood.detach().to(recorder.loss)
            recorder.correct[index] = outputs.correct.to(recorder.correct)
            scalars = [outputs.probes[:, p].sum() for p in range(probes.num_probes)]
            if not probes.spans:
                scalars.append(outputs.log_likelihood.sum())
            for slot, scalar in enumerate(scalars):
                recorder.slot = slot
                torch.autograd.grad(scalar, recorder.source, retain_graph=slot + 1 < len(scalars))
                tick()
            recorder.finish()
    return recorder.features(probes.valid(encoded))


class _Recorder:
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
        self.dtype = _at_least_float32(next(p.dtype for p in loaded.model.parameters() if p.is_floating_point()))
        # A bfloat16 feature's rounding (1 in 500) is far below a sketch's own error; exact features keep all digits.
        self.stored = self.dtype if plan.exact else torch.bfloat16
        self.rows, self.slots, k = encoded.num_examples, probes.num_backward, probes.num_probes
        self.residual = torch.zeros(self.rows, k, dtype=torch.float64)
        self.curvature = torch.zeros(self.rows, k, k, dtype=torch.float64)
        self.loss = torch.zeros(self.rows, dtype=torch.float64)
        self.correct = torch.zeros(self.rows, dtype=torch.float64)
        self.linear: dict[Site, Tensor] = {}
        self.vector: dict[Site, Tensor] = {}
        self.weights: dict[tuple[int, str], Tensor] = {}
        self.reads: dict[Any, Tensor] = {}
        self.seed = seed
        self._drawn: dict[Any, Tensor] = {}

    # --- one batch ---

    def start(self, batch: Batch) -> None:
        self.mask = batch.mask[..., None].to(self.dtype)
        self.examples, self.local = torch.unique(batch.example, return_inverse=True)
        self.reads.clear()

    def finish(self) -> None:
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
        scaled = read.detach().to(self.dtype) * self.mask / self.scales[site].to(self.dtype)
        self.reads[site] = self._project(scaled, "site read", self.plan.blocks * self.plan.size, self.plan.blocks)

    def _site_grad(self, write: Site, sites: list[Site], grad: Tensor) -> None:
        grad = grad.to(self.dtype) * self.mask
        blocks = 1 if self.plan.exact else self.plan.blocks
        grad = self._project(grad, "site write", blocks * self.plan.size, blocks)
        for site in sites:
            self._store(self.linear, site, combine(grad, self.reads[site], blocks), self.stored)
        # Every block estimates the whole inner product; side by side they count it once per block.
        self._store(self.vector, write, vector_tangent(grad) / math.sqrt(blocks), self.stored)

    def _weight_hook(self, layer: int, group: str, path: str, module: nn.Module) -> Callable[..., Tensor]:
        """Read a linear map's input after it ran (once per group of maps that share it) and mark its output."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if (layer, group) not in self.reads:
                read = as_token_axes(args[0].detach(), *self.mask.shape[:2]).to(self.dtype) * self.mask
                self.reads[layer, group] = self._project(read, (layer, group), self.plan.weight_size)
            marked = output.view_as(output)
            marked.register_hook(lambda grad: self._weight_grad(layer, group, path, grad))
            return marked

        return hook

    def _weight_grad(self, layer: int, group: str, path: str, grad: Tensor) -> None:
        grad = as_token_axes(grad, *self.mask.shape[:2]).to(self.dtype) * self.mask
        # Features of all maps are summed, so maps must meet in independent directions: those that share what they
        # read differ in ``path``, those in other layers or groups in how what they read was projected.
        grad = self._project(grad, path, self.plan.weight_size)
        key = (layer, path) if self.plan.exact else (0, "all")
        self._store(self.weights, key, combine(grad, self.reads[layer, group], 1), self.dtype, add=True)

    # --- projections and storage ---

    def _project(self, tensor: Tensor, role: Any, rows: int, blocks: int = 1) -> Tensor:
        """Project the channels of a tensor; one projection per role and width."""
        if self.plan.exact:
            return tensor
        width = tensor.shape[-1]
        if (role, width) not in self._drawn:
            # Seeded by role, not by the order of use, so that no other choice moves a projection.
            seed = zlib.crc32(repr((self.seed, role, width)).encode())
            drawn = random_projection(rows, width, blocks=blocks, generator=torch.Generator().manual_seed(seed))
            self._drawn[role, width] = drawn.to(tensor)
        return tensor @ self._drawn[role, width].T

    def _store(self, into: dict[Any, Tensor], key: Any, feature: Tensor, dtype: torch.dtype, add: bool = False) -> None:
        """Sum an example's sequences and put the result in its row."""
        if len(self.examples) < len(feature):
            feature = feature.new_zeros(len(self.examples), feature.shape[1]).index_add_(0, self.local, feature)
        if key not in into:
            into[key] = torch.zeros(self.rows, self.slots, feature.shape[1], dtype=dtype, device=feature.device)
        if add:
            into[key][self.examples, self.slot] += feature.to(dtype)
        else:
            into[key][self.examples, self.slot] = feature.to(dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _pad_id(loaded: LoadedModel) -> int:
    found = loaded.tokenizer.pad_token_id
    return int(found) if isinstance(found, int) else 0
