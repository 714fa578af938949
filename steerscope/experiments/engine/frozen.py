"""The residual stream that enters a block, computed once: nothing below the lowest edit depends on it.

With frozen weights every step of every run that enters at one block can start from the kept stream. Only the order of
rounding could differ; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.capture.outputs import selected_positions
from steerscope.experiments.engine.rows import run
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.calls import first_tensor
from steerscope.models.lengths import batches_within, switch_length
from steerscope.models.offloaded import device_of
from steerscope.models.site_map import SiteMap
from steerscope.models.tokens import padded
from steerscope.models.upper_blocks import doing_nothing, entering_block

# Most tokens of a batch in which streams are computed: more only move memory on a CPU, and fill a GPU.
TOKENS, GPU_TOKENS = 4096, 65536


@dataclass
class _Group:
    """Rows that were asked for together, in batches of similar length: per batch a block and the stream entering it."""

    batches: list[list[tuple[int, ...]]]

    def __post_init__(self) -> None:
        self.streams: list[tuple[int, Tensor | None]] = [(0, None)] * len(self.batches)
        self.places = {key: (at, row) for at, batch in enumerate(self.batches) for row, key in enumerate(batch)}


class FrozenStreams:
    """The stream entering one block, for sequences as they are asked for.

    Which rows share a batch depends on those that are asked for together (:meth:`begin`) and on nothing that was asked
    for before. So the bits are the same in every process, in whatever order packs are trained.

    Memory: ``tokens x d_model`` numbers of the model's data type per group. Moving up a block runs the blocks in
    between once, for the groups that are still asked for.
    """

    def __init__(self, model: nn.Module, site_map: SiteMap, pad: int) -> None:
        self.model, self.site_map, self.pad = model, site_map, pad
        self.layer = 0
        self._groups: dict[tuple[tuple[int, ...], ...], _Group] = {}
        self._group = _Group([])

    def move_to(self, layer: int) -> None:
        """Make ready for ``layer``; going down starts again from the embeddings.

        Where blocks read more of those below than the stream, all of them run every time.
        """
        layer = 0 if self.site_map.description.reads_below else layer
        if layer < self.layer:
            self._groups = {}
            self._group = _Group(self._group.batches)
        self.layer = layer

    def begin(self, rows: Sequence[SupervisedSequence]) -> None:
        """Say which rows will be asked for together from now on; nothing is computed yet."""
        keys = tuple(dict.fromkeys(row.ids for row in rows))
        if keys not in self._groups:
            self._groups[keys] = _Group(self._cut(keys))
        self._group = self._groups[keys]

    def entering(self, rows: Sequence[SupervisedSequence]) -> Tensor | None:
        """Return the stream of some rows ``(row token d_model)``, padded on the right, or None at the first block.

        At the number of blocks it is what leaves the last.
        """
        if self.layer == 0:
            return None
        if any(row.ids not in self._group.places for row in rows):
            self.begin(rows)
        streams = self._advanced(self._group)
        width = max(len(row.ids) for row in rows)
        stream = streams[0].new_zeros(len(rows), width, streams[0].shape[-1])
        for place, row in enumerate(rows):
            at, own = self._group.places[row.ids]
            stream[place, : len(row.ids)] = streams[at][own, : len(row.ids)]
        return stream

    def _cut(self, keys: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        order = sorted(keys, key=len)
        tokens = GPU_TOKENS if next(self.model.parameters()).device.type == "cuda" else TOKENS
        size = max(1, tokens // len(order[-1])) if order else 1
        cut = batches_within(range(len(order)), lambda i: len(order[i]), size, switch_length(self.model))
        return [[order[i] for i in chosen] for chosen in cut]

    def _advanced(self, group: _Group) -> list[Tensor]:
        """Return the streams of a group's batches where they enter this block, padded as they were computed."""
        for at, batch in enumerate(group.batches):
            layer, stream = group.streams[at]
            if layer != self.layer:
                start, entered = (layer, stream) if layer < self.layer else (0, None)
                group.streams[at] = self.layer, self._run(batch, start, self.layer, entered)
        return [stream for _, stream in group.streams if stream is not None]

    def _run(self, keys: Sequence[tuple[int, ...]], start: int, stop: int, entered: Tensor | None) -> Tensor:
        device = device_of(self.model)
        ids, mask = padded(keys, self.pad, device), padded([[1] * len(key) for key in keys], 0, device)
        nowhere = torch.zeros(1, dtype=torch.long, device=device)
        seen: list[Tensor] = []
        with (
            torch.no_grad(),
            _stopping_at(self.site_map, stop, seen),
            entering(self.site_map, start, entered),
            selected_positions(self.model, nowhere, nowhere),  # no logits are needed
        ):
            run(self.model, ids, mask)
        return seen[0]


@contextmanager
def _stopping_at(site_map: SiteMap, layer: int, seen: list[Tensor]) -> Iterator[None]:
    """Keep what leaves the block below ``layer``, and compute nothing from ``layer`` on."""

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found = first_tensor(output)
        assert found is not None
        seen.append(found)

    above = [block.module for block in site_map.blocks[layer:]]
    with site_map.blocks[layer - 1].module.register_forward_hook(keep), doing_nothing(above):
        yield


@contextmanager
def entering(site_map: SiteMap, layer: int, stream: Tensor | None) -> Iterator[None]:
    """Run the blocks from ``layer`` on with a kept stream, or all of them where there is none.

    Args:
        site_map: The model's blocks.
        layer: The block to begin at; the number of blocks for none.
        stream: The residual stream that enters it ``(row column channel)``, or ``None``.

    Yields:
        Nothing; while the context lasts, the blocks below ``layer`` are skipped. The last of them gives back the kept
        stream, so that edits of what leaves it act.
    """
    if stream is None:
        yield
        return
    below = site_map.blocks[layer - 1]
    with entering_block(site_map, below.index, stream), doing_nothing([below.module]):
        yield
