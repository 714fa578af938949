"""Train at a site without running what lies below it: the stream entering its block is computed once and kept.

With frozen weights nothing below the lowest edited block depends on the edit, so every step of every learning
rate can start from the kept stream. Only the order of rounding could differ; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.encoding import Batch, Encoded, batches
from steerscope.analysis.outputs import selected_positions
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.models.upper_blocks import entering_block, pass_through


class PrefixCache:
    """The stream entering one block for every sequence of some encoded examples.

    Memory: ``tokens x d_model`` numbers of the model's data type, for one block at a time; moving up costs the
    blocks in between, once.
    """

    def __init__(self, loaded: LoadedModel, encoded: Encoded, batch_size: int = 32) -> None:
        self.loaded, self.encoded, self.batch_size = loaded, encoded, batch_size
        self.layer = 0
        self._kept: dict[tuple[int, int], Tensor] = {}

    def move_to(self, layer: int) -> None:
        """Make ready for ``layer``; going down starts again from the embeddings."""
        if layer < self.layer:
            self.layer, self._kept = 0, {}
        if layer == self.layer:
            return
        blocks, found = self.loaded.site_map.blocks, {}
        seen: list[Tensor] = []
        stop = blocks[layer].module.register_forward_pre_hook(_keeping(seen), with_kwargs=True)
        above = [block.module for block in blocks[layer:]]
        for module in above:
            module.forward = pass_through
        try:
            for batch in batches(
                self.encoded,
                batch_size=self.batch_size,
                pad_id=pad_token(self.loaded.tokenizer, self.loaded.model),
                device=self.loaded.device,
            ):
                seen.clear()
                nowhere = torch.zeros(1, dtype=torch.long, device=self.loaded.device)
                with torch.no_grad(), self.entered(batch), selected_positions(self.loaded.model, nowhere, nowhere):
                    run(self.loaded, batch)
                for row, key in enumerate(_keys(batch)):
                    found[key] = seen[0][row, : int(batch.length[row])].clone()
        finally:
            stop.remove()
            for module in above:
                del module.forward
        self.layer, self._kept = layer, found

    @contextmanager
    def entered(self, batch: Batch) -> Iterator[None]:
        """Run ``batch`` (padded on the right) from the kept layer on."""
        if self.layer == 0:
            yield
            return
        first = self._kept[_keys(batch)[0]]
        stream = first.new_zeros(*batch.ids.shape, first.shape[-1])
        for row, key in enumerate(_keys(batch)):
            stream[row, : int(batch.length[row])] = self._kept[key]
        with entering_block(self.loaded.site_map, self.layer, stream):
            yield

    def batch(self, examples: Sequence[int]) -> Batch:
        """Return all sequences of ``examples`` as one batch, which they must be able to share (``Encoded.switch``)."""
        (found,) = batches(
            self.encoded,
            batch_size=len(self.encoded.sequences),
            pad_id=pad_token(self.loaded.tokenizer, self.loaded.model),
            device=self.loaded.device,
            examples=examples,
        )
        return found


def _keys(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.example.tolist(), batch.choice.tolist(), strict=True))


def _keeping(into: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append(args[0] if args else kwargs["hidden_states"])

    return hook


def run(loaded: LoadedModel, batch: Batch) -> Tensor:
    """Run the model on a batch and return its logits."""
    logits: Tensor = loaded.model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
    ).logits
    return logits
