"""The residual stream that enters a block, computed once: nothing below the lowest edit depends on it.

With frozen weights every step of every run that enters at one block can start from the kept stream. Only the order of
rounding could differ; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.capture.outputs import selected_positions
from steerscope.experiments.engine.rows import padded, run
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.calls import stream_of
from steerscope.models.lengths import batches_within, switch_length
from steerscope.models.offloaded import device_of
from steerscope.models.site_map import SiteMap
from steerscope.models.upper_blocks import doing_nothing, entering_block

# Most tokens of a batch in which streams are computed: more only move memory on a CPU, and fill a GPU.
TOKENS, GPU_TOKENS = 4096, 65536


class FrozenStreams:
    """The stream entering one block, for sequences as they are asked for.

    Memory: ``tokens x d_model`` numbers of the model's data type. Moving up a block runs the blocks in between once.
    """

    def __init__(self, model: nn.Module, site_map: SiteMap, pad: int) -> None:
        self.model, self.site_map, self.pad = model, site_map, pad
        self.layer = 0
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def move_to(self, layer: int) -> None:
        """Make ready for ``layer``; going down starts again from the embeddings."""
        if layer < self.layer:
            self.layer, self._kept = 0, {}
        if layer > self.layer:
            known, self._kept = list(self._kept), self._advanced(list(self._kept), self.layer, layer)
            assert len(known) == len(self._kept)
            self.layer = layer

    def entering(self, rows: Sequence[SupervisedSequence]) -> Tensor | None:
        """Return the stream of some rows ``(row token d_model)``, padded on the right, or None at the first block."""
        if self.layer == 0:
            return None
        missing = list(dict.fromkeys(row.ids for row in rows if row.ids not in self._kept))
        self._kept |= self._advanced(missing, 0, self.layer)
        width = max(len(row.ids) for row in rows)
        first = self._kept[rows[0].ids]
        stream = first.new_zeros(len(rows), width, first.shape[-1])
        for place, row in enumerate(rows):
            stream[place, : len(row.ids)] = self._kept[row.ids]
        return stream

    def _advanced(self, keys: list[tuple[int, ...]], start: int, stop: int) -> dict[tuple[int, ...], Tensor]:
        """Return the streams entering block ``stop``, from the kept ones that enter block ``start``."""
        found: dict[tuple[int, ...], Tensor] = {}
        keys = sorted(keys, key=len)
        tokens = GPU_TOKENS if next(self.model.parameters()).device.type == "cuda" else TOKENS
        size = max(1, tokens // len(keys[-1])) if keys else 1
        for chosen in batches_within(range(len(keys)), lambda i: len(keys[i]), size, switch_length(self.model)):
            batch = [keys[i] for i in chosen]
            entered = None
            if start:
                first = self._kept[batch[0]]
                entered = first.new_zeros(len(batch), max(map(len, batch)), first.shape[-1])
                for place, key in enumerate(batch):
                    entered[place, : len(key)] = self._kept[key]
            stream = self._run(batch, start, stop, entered)
            found |= {key: stream[place, : len(key)].clone() for place, key in enumerate(batch)}
        return found

    def _run(self, keys: list[tuple[int, ...]], start: int, stop: int, entered: Tensor | None) -> Tensor:
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
    """Keep what enters a block, and compute nothing from there on."""

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(stream_of(args, kwargs))

    above = [block.module for block in site_map.blocks[layer:]]
    handle = above[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with doing_nothing(above):
            yield
    finally:
        handle.remove()


@contextmanager
def entering(site_map: SiteMap, layer: int, stream: Tensor | None) -> Iterator[None]:
    """Run the blocks from ``layer`` on with a kept stream, or all of them where there is none.

    Args:
        site_map: The model's blocks.
        layer: The block to begin at.
        stream: The residual stream that enters it ``(row column channel)``, or ``None``.

    Yields:
        Nothing; while the context lasts, the blocks below ``layer`` are skipped.
    """
    if stream is None:
        yield
        return
    with entering_block(site_map, layer, stream):
        yield
