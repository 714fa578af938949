"""The hooks of a capture pass: forward they hand on what is read, backward what is derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.capture.exact import ExactParts
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import Probes
from steerscope.analysis.capture.sketched import SketchedParts
from steerscope.analysis.capture.stored import BatchRows
from steerscope.analysis.capture.way_back import RoundedBack, rounded_weight, rounds_back
from steerscope.analysis.data.encoding import Batch, Encoded
from steerscope.errors import UnsupportedModelError
from steerscope.models.blocks import as_token_axes
from steerscope.models.hooks import tapping
from steerscope.models.load import LoadedModel
from steerscope.models.packed import compute_dtype
from steerscope.models.site_map import SiteMap
from steerscope.sites import Site


class Recorder:
    """The hooks of one capture pass and the features they fill."""

    source: Tensor

    def __init__(
        self,
        loaded: LoadedModel,
        encoded: Encoded,
        probes: Probes,
        plan: SketchPlan,
        scales: dict[Site, Tensor],
        seed: int,
    ) -> None:
        self.loaded, self.scales, self.probes = loaded, scales, probes
        self.rows, self.slots, k = encoded.num_examples, probes.num_backward, probes.num_probes
        self.residual = torch.zeros(self.rows, k, dtype=torch.float64)
        self.curvature = torch.zeros(self.rows, k, k, dtype=torch.float64)
        self.loss = torch.zeros(self.rows, dtype=torch.float64)
        self.correct = torch.zeros(self.rows, dtype=torch.float64)
        dtype, home, shape = at_least_float32(compute_dtype(loaded.model)), loaded.device, (self.rows, self.slots)
        site_map = loaded.site_map
        _require_own_maps(site_map)
        written_at = {site: site_map.written_at(site) for site in site_map.sites() if site_map.write(site) == site}
        self.parts: ExactParts | SketchedParts
        if plan.exact:
            self.parts = ExactParts(written_at, scales, shape, dtype, home)
        else:
            groups = [(block.index, group) for block in site_map.blocks for group, _ in block.groups()]
            self.parts = SketchedParts(groups, written_at, scales, plan, shape, dtype, home, seed)
        # Whether derivatives go back through linear maps in few digits, where a device is faster so.
        self.rounds = plan.rounded_back and not plan.exact
        self.weights_back: dict[nn.Module, Tensor] = {}

    # --- one batch ---

    def start(self, batch: Batch) -> None:
        """Make ready for a batch's forward pass."""
        self.batch = BatchRows.of(batch)
        self.parts.start(self.batch)

    @property
    def side_by_side(self) -> bool:
        """Whether several backward passes may be made at once, in threads of their own."""
        # A GPU, of some layers too, derives in a thread of its own.
        on_cpu = all(parameter.device.type == "cpu" for parameter in self.loaded.model.parameters())
        return isinstance(self.parts, SketchedParts) and self.parts.home.type == "cpu" and on_cpu

    def start_slot(self, slot: int) -> None:
        """Make ready for one backward pass."""
        self.parts.start_slot(slot)

    def finish_slot(self) -> None:
        """Keep the features of the backward pass that ended."""
        self.parts.finish_slot()

    def finish(self) -> None:
        """Let go of the batch's activations."""
        self.parts.finish()
        del self.source

    def features(self, valid: Tensor, lengths: Mapping[Site, tuple[float, float]]) -> Features:
        """Return what was recorded, with the typical lengths of what sites read (raw, and scaled).

        Args:
            valid: Which output directions an example has ``(example slot)``.
            lengths: Per site the typical length of what it reads, and of the same divided by its channels' scales.

        Returns:
            The features of all sites, with losses in nats, residuals and Fisher matrices.

        Raises:
            UnsupportedModelError: No derivative came back to a site, whose features would be left out or zero.
        """
        lost = [site for site in lengths if self._write(site) not in self.parts.reached]
        if lost:
            raise UnsupportedModelError(
                f"no derivative of the outputs comes back to '{lost[0]}' ({len(lost)} of {len(lengths)} sites), though "
                "edits there change the logits: the block detaches what is added there, or changes it in place. Such a "
                "model cannot be ranked."
            )
        return Features(
            linear=self.parts.linear,
            vector=self.parts.vector,
            weights=list(self.parts.weights.values()),
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
        for module in site_map.linear_maps().values() if self.rounds else ():
            if rounds_back(module, self.parts.dtype, self.parts.home):
                self.weights_back[module] = rounded_weight(module, self.parts.dtype)
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
            self.parts.read_site(site, read.detach())
            # A node of its own: the derivative is of what flows on through this site alone, not of everything
            # else that uses the same tensor (a norm shared by attention and MLP, the skip past an MLP).
            marked = value.view_as(value)
            marked.register_hook(lambda grad: self.parts.grad_of_site(site, grad))
            return marked

        return tap

    def _read_tap(self, site: Site) -> Callable[[Tensor, Tensor], None]:
        return lambda value, read: self.parts.read_site(site, read.detach())

    def _write(self, site: Site) -> Site:
        return self.loaded.site_map.write(site)

    def _holder(self, write: Site) -> Site:
        """Return the site that reads what an edit at a write point is added to: the stream, where it is the stream."""
        return Site(write.layer, self.loaded.site_map.blocks[write.layer].description.stream_behind(write.kind))

    def _weight_hook(self, layer: int, group: str, path: str, *, reads: bool) -> Callable[..., Tensor]:
        """Mark a linear map's output, and with ``reads`` record its input (once per group of maps that share it).

        Returns:
            A forward hook for the linear map.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                return output  # a map that only chooses (which tokens attention looks at) has no derivative
            if reads:
                read = as_token_axes(args[0].detach(), *self.batch.mask.shape)
                self.parts.read_maps(layer, group, read)

            def derived(grad: Tensor) -> None:
                self.parts.grad_of_map(layer, group, path, as_token_axes(grad, *self.batch.mask.shape))

            parts, back = self.parts, self.weights_back.get(module)
            if self.rounds and back is not None and isinstance(parts, SketchedParts) and args[0].requires_grad:

                def few_digits(grad: Tensor) -> Tensor:
                    derived(grad)
                    return parts.few_digits(grad)

                rounded: Tensor = RoundedBack.apply(args[0], output.detach(), back, few_digits)
                return rounded
            marked = output.view_as(output)
            marked.register_hook(derived)
            return marked

        return hook


def _require_own_maps(site_map: SiteMap) -> None:
    """Refuse a linear map that is at several places: what it reads at one would meet the derivatives of another.

    Raises:
        UnsupportedModelError: Blocks share a linear map.
    """
    found: dict[nn.Module, str] = {}
    for (layer, path), module in site_map.linear_maps().items():
        here = f"{path!r} of block {layer}"
        if module in found:
            raise UnsupportedModelError(
                f"{found[module]} and {here} are one linear map: fine-tuning it changes both places at once, which is "
                "not computed. Such a model cannot be ranked; one with a copy of the map at every place can."
            )
        found[module] = here


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute features in: half precisions are widened."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
