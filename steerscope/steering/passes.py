"""The pass under way: which of its tokens are edited.

A hook on the decoder opens a pass, whoever calls the model: the wrapper, ``generate``, or PEFT's wrapper (which calls
``forward`` of the language model past its hooks). What the decoder does not see, where prompts end and masks of the
caller, is told beforehand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.steering.checkpointing import forget_pass, remember_pass
from steerscope.steering.positions import Positions, token_mask


@dataclass(frozen=True)
class Pass:
    """One run of the decoder; ``mask`` is which of its tokens are edited ``(batch token)``, None for all."""

    mask: Tensor | None = None


@dataclass(frozen=True)
class _Told:
    """What the caller said: see :func:`steerscope.steering.positions.token_mask`."""

    prompt_lengths: Tensor | None = None
    mask: Tensor | None = None
    generates: bool = False


class Passes:
    """Keeps the pass under way; ``current`` is what edits ask."""

    def __init__(
        self,
        owner: object,
        positions: Positions,
        decoder: nn.Module,
        blocks: Sequence[nn.Module],
        edited_inside: Set[nn.Module],
    ) -> None:
        self.owner = owner
        self.positions, self.blocks, self._edited_inside = positions, blocks, edited_inside
        self.current = Pass()
        self.is_active = True  # nothing is asked of the caller while edits are off
        self._told = _Told()
        # Columns of the sequences being generated: caches of fixed length hand the decoder a mask of another shape.
        self._columns: Tensor | None = None
        self._signature = inspect.signature(decoder.forward)
        self._handle = decoder.register_forward_pre_hook(self._open, with_kwargs=True)

    def close(self) -> None:
        """Stop watching, and give the blocks their own checkpointing functions back."""
        self._handle.remove()
        forget_pass(self, self.blocks)

    def trains_inside(self, block: nn.Module) -> bool:
        """Whether edits that are trained act inside the block, not only on what enters and leaves it."""
        return block in self._edited_inside

    @contextmanager
    def told(
        self,
        *,
        prompt_lengths: Tensor | None = None,
        mask: Tensor | None = None,
        generates: bool = False,
        columns: Tensor | None = None,
    ) -> Iterator[None]:
        """Inside the context, use these lengths or this mask; or take the first pass to be the prompt.

        ``columns`` is the prompts' attention mask, where it is known.
        """
        before = self._told, self._columns
        self._told, self._columns = _Told(prompt_lengths, mask, generates), columns
        try:
            yield
        finally:
            self._told, self._columns = before

    @contextmanager
    def reopened(self, earlier: Pass) -> Iterator[None]:
        """Inside the context the pass is an earlier one: its blocks run again in its backward."""
        before, self.current = self.current, earlier
        try:
            yield
        finally:
            self.current = before

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            remember_pass(self, self.blocks)
        if self.positions.rule == "all" or not self.is_active:
            self.current = Pass()
            return
        given = self._signature.bind_partial(*args, **kwargs).arguments
        ids = given.get("input_ids")
        ids = given.get("inputs_embeds") if ids is None else ids
        if ids is None:
            raise InputError("the decoder was called without input_ids and inputs_embeds; pass one of them.")
        columns = self._columns_of(given, ids)
        if self._told.generates:
            self._columns = columns
            if self._told.prompt_lengths is None:  # the first pass of a generation
                self._told = replace(self._told, prompt_lengths=(columns != 0).sum(-1))
        self.current = Pass(
            token_mask(
                self.positions,
                columns,
                ids.shape[1],
                prompt_lengths=self._told.prompt_lengths,
                given=self._told.mask,
            )
        )

    def _columns_of(self, given: dict[str, Any], ids: Tensor) -> Tensor:
        """Return which columns hold tokens, ``(batch column)``: cached ones and those of this pass."""
        mask = given.get("attention_mask")
        cache = given.get("past_key_values")
        batch, new = ids.shape[:2]
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask
        cached = 0 if cache is None else int(cache.get_seq_length())
        if mask is None:
            return torch.ones(batch, cached + new, dtype=torch.long, device=ids.device)
        if self._columns is None:
            raise InputError(
                f"positions {self.positions.rule!r} are computed from an attention mask (batch, tokens), got "
                f"{type(mask).__name__} of another shape. Pass the mask that the tokenizer gives."
            )
        rows = self._columns.repeat_interleave(batch // self._columns.shape[0], dim=0)  # beams
        added = cached + new - rows.shape[1]
        return torch.nn.functional.pad(rows, (0, added), value=1)  # negative where columns come again without a cache


def passes_on(decoder: nn.Module) -> Passes | None:
    """Return what watches a decoder, if anything does."""
    for hook in decoder._forward_pre_hooks.values():
        watcher = getattr(hook, "__self__", None)
        if isinstance(watcher, Passes):
            return watcher
    return None
