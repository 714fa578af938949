"""A few numbers per site that need no derivative, gathered in the forward pass that measures scales.

They are what proposals in the literature order layers or weight matrices by, so that rankings can be compared with
them. Cost: norms of what every linear map reads and writes, and the stream at the end of each prompt times the
unembedding of a few tokens: one second for 64 prompts of 19 tokens on a 135M model and one core, of the 70 that a
ranking of 96 such prompts takes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.capture.outputs import selected_positions
from steerscope.analysis.data.encoding import Batch, Encoded, OutputMode
from steerscope.models.blocks import Block, linear_shape, linear_weight
from steerscope.models.hooks import Tap, tapping
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import weights_in_memory
from steerscope.models.packed import is_packed, matrix_of
from steerscope.models.upper_blocks import above_blocks
from steerscope.models.wrappers import acting_layer
from steerscope.site_kinds import Branch, Maps, Place, Role, SiteKind
from steerscope.sites import Site

# Numbers of streams that go through the model's head in one call.
_TOGETHER = 2**22


@dataclass(frozen=True)
class PlaceStats:
    """What is known of a site without a derivative.

    Attributes:
        lens_accuracy: Share of prompts whose answer the logit lens reads off the stream behind the site, at the end of
            the prompt, between 0 and 1.
        block_change: One minus the linear centred kernel alignment (CKA) of the streams that enter and leave the
            site's block, over the ends of prompts; between 0 and 1.
        feature_norm: Mean over tokens of ``|W z| sqrt(d_in) / (|W|_F |z|)`` of the linear maps at the site: 1 for a
            random matrix.
    """

    lens_accuracy: float
    block_change: float
    feature_norm: float


class PlaceWatch:
    """The hooks of one forward pass over examples, and the statistics they make."""

    def __init__(self, loaded: LoadedModel, encoded: Encoded) -> None:
        self.loaded, self.encoded = loaded, encoded
        kinds = loaded.site_map.description.kinds
        self._streams = [site for site in loaded.site_map.sites() if site.kind.facts.role is Role.STREAM]
        self._stream_kinds = [kind for kind in kinds if kind.facts.role is Role.STREAM]
        self._ends: dict[Site, list[Tensor]] = {}
        self._norms: dict[nn.Module, Tensor] = {}
        self._examples: list[int] = []
        self._tokens = 0

    def start(self, batch: Batch) -> None:
        """Make ready for a batch's forward pass."""
        first = batch.choice == 0  # one row per prompt: what stands before the answer is the same in all
        self._rows = first.nonzero()[:, 0]
        self._columns = (batch.offset + batch.first_target - 1)[self._rows]
        self._real = batch.mask.flatten().bool()
        self._examples += batch.example[self._rows].tolist()
        self._tokens += int(batch.mask.sum())

    def attached(self) -> ExitStack:
        """Set all hooks; closing the stack removes them."""
        stack = ExitStack()
        for module in self.loaded.site_map.linear_maps().values():
            stack.callback(module.register_forward_hook(self._map_hook).remove)
        stack.enter_context(tapping(self.loaded.site_map, {site: self._tap(site) for site in self._streams}))
        return stack

    def _tap(self, site: Site) -> Tap:
        def tap(value: Tensor, read: Tensor) -> None:
            self._ends.setdefault(site, []).append(read.to(self.loaded.device)[self._rows, self._columns].detach())

        return tap

    def _map_hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        bias = getattr(acting_layer(module), "bias", None)
        written = output if bias is None else output - bias
        home = self.loaded.device
        z, wz = (
            tensor.detach().to(home).flatten(0, -2).float().norm(dim=1)[self._real] for tensor in (args[0], written)
        )
        ratio = (wz / z.clamp_min(1e-30)).double().sum()
        self._norms[module] = self._norms.get(module, torch.zeros_like(ratio)) + ratio

    def stats(self) -> dict[Site, PlaceStats]:
        """Return what was gathered, per site."""
        ends = {site: torch.cat(parts) for site, parts in self._ends.items()}
        lens = dict(zip(ends, self._lens_accuracies(list(ends.values())), strict=True))
        site_map, found = self.loaded.site_map, {}
        for block in site_map.blocks:
            left = ends[Site(block.index, SiteKind.RESID_POST)]
            change = 1 - linear_cka(ends[self._entering(block)], left)
            for site in (site for site in site_map.sites() if site.layer == block.index):
                norms = [self._feature_norm(module) for module in maps_at(block, site.kind)]
                seen_at = Site(site.layer, self._stream_after(site.kind))
                found[site] = PlaceStats(lens[seen_at], change, sum(norms) / len(norms))
        return found

    def _entering(self, block: Block) -> Site:
        if block.index:
            return Site(block.index - 1, SiteKind.RESID_POST)
        return Site(0, next(kind for kind in self._stream_kinds if kind.facts.place is Place.ENTERS))

    def _stream_after(self, kind: SiteKind) -> SiteKind:
        """Return the first stream in the block that an edit at a kind of site is part of."""
        return next(stream for stream in self._stream_kinds if stream.order >= kind.order)

    def _feature_norm(self, module: nn.Module) -> float:
        d_in = linear_shape(module)[1]
        with weights_in_memory(module):
            weight = matrix_of(module) if is_packed(module) else linear_weight(module)
            size = float(weight.detach().float().norm())
        return float(self._norms[module]) / self._tokens * d_in**0.5 / max(size, 1e-30)

    def _lens_accuracies(self, ends: list[Tensor]) -> list[float]:
        """Return how often the final norm and the unembedding find the answer in each stream ``example d_model``."""
        together = max(1, _TOGETHER // ends[0].numel())
        hidden = torch.cat([self._hidden(ends[first : first + together]) for first in range(0, len(ends), together)])
        head = self.loaded.model.get_output_embeddings()  # type: ignore[operator]
        # The rows of a quantised head are not taken one by one, nor those of one that is elsewhere.
        weight = None if is_packed(head) else linear_weight(head)
        if weight is not None and (weight.is_meta or weight.device != hidden.device):
            weight = None
        bias = getattr(acting_layer(head), "bias", None)
        right = torch.zeros(len(ends), dtype=torch.float64)
        for place, (tokens, answer) in enumerate(map(self._choices, self._examples)):
            distinct = sorted(set(tokens))
            if weight is None:
                logits = head(hidden[:, place]).to(hidden.device)[:, distinct]
            else:
                logits = hidden[:, place] @ weight[distinct].T
                logits = logits if bias is None else logits + bias[distinct]
            # Choices that begin alike share what they get.
            right += (logits.argmax(1) == distinct.index(tokens[answer])).cpu().double() / tokens.count(tokens[answer])
        return (right / hidden.shape[1]).tolist()

    @torch.no_grad()
    def _hidden(self, ends: list[Tensor]) -> Tensor:
        """Return what the head reads of streams ``example d_model``, as ``stream example d_head``."""
        model, device = self.loaded.model, self.loaded.device
        every = torch.cat(ends)
        read: list[Tensor] = []
        # What the head reads may be more than the final norm of the stream (BERT's has a layer of its own before it).
        head = model.get_output_embeddings()  # type: ignore[operator]
        handle = head.register_forward_pre_hook(lambda _, args: read.append(args[0][:, 0]))
        ids, nowhere = (torch.zeros(shape, dtype=torch.long, device=device) for shape in ((len(every), 1), (1,)))
        try:
            with above_blocks(self.loaded.site_map, every[:, None]), selected_positions(model, nowhere, nowhere):
                model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        return read[0].unflatten(0, (len(ends), -1))

    def _choices(self, example: int) -> tuple[list[int], int]:
        """Return the tokens that an example's answer could begin with, and which of them is right."""
        if self.encoded.mode is OutputMode.CHOICE_LOGITS:
            return list(self.encoded.choice_tokens[example]), self.encoded.answers[example]
        begins = self._first_tokens
        if self.encoded.mode is OutputMode.CHOICE_LIKELIHOODS:
            return begins[example], self.encoded.answers[example]
        every = sorted({begins[other][0] for other in self._examples})
        return every, every.index(begins[example][0])

    @cached_property
    def _first_tokens(self) -> dict[int, list[int]]:
        begins: dict[int, list[int]] = {}
        for sequence in self.encoded.sequences:
            begins.setdefault(sequence.example, []).append(sequence.ids[sequence.first_target])
        return begins


def maps_at(block: Block, kind: SiteKind) -> tuple[nn.Module, ...]:
    """Return the linear maps at a kind of site: those that read it alone, else the one whose output it is or ends with.

    What enters the first block is read by that block's attention. At a branch that is one map, these are all linear
    maps of that branch.

    Args:
        block: A block of the model.
        kind: A kind of site that the block has.

    Returns:
        One linear map or several that share their input.
    """
    facts = kind.facts
    branch = facts.read_by[0] if facts.read_by else (*facts.written_by, Branch.ATTENTION)[len(facts.written_by) - 1]
    if block.whole(branch) is not None:
        found = (*block.attn_reads, *block.attn_inner) if branch is Branch.ATTENTION else block.mlp_inner
    elif facts.read_by is not None:
        found = block.maps(*facts.read_by)
    elif facts.written_by:
        found = block.maps(branch, Maps.WRITE)
    else:
        found = block.maps(Branch.ATTENTION, Maps.READS)
    return found or tuple(block.linear_maps().values())


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centred kernel alignment of two representations ``example channel``, between 0 and 1.

    0 where one of them is the same for all examples: then nothing of it can be found in the other.

    Args:
        first: Representations ``(example channel)``.
        second: Representations of the same examples ``(example channel)``; it may have another number of channels.

    Returns:
        The alignment, computed in float64.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> round(linear_cka(x, 5 - 2 * x), 6), linear_cka(x, torch.ones(3, 2))
        (1.0, 0.0)
    """
    centred = []
    for value in (first.double(), second.double()):
        shifted = value - value.mean(0)
        if float(shifted.pow(2).sum()) <= 1e-10 * float(value.pow(2).sum()):
            return 0.0
        centred.append(shifted @ shifted.T)
    one, other = centred
    return float((one * other).sum() / (one.norm() * other.norm()))
