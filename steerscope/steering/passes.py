"""The pass under way: which of its tokens are edited.

A hook on the decoder opens a pass, whoever calls the model: the wrapper, ``generate``, or PEFT's wrapper (which calls
``forward`` of the language model past its hooks). What the decoder does not see, where prompts end and masks of the
caller, is told beforehand. All of it is kept per thread, so that a model may be used in several.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.models.wrappers import language_model
from steerscope.steering.checkpointing import forget_pass, remember_pass
from steerscope.steering.generating import Generation, generation_of
from steerscope.steering.positions import Positions, token_mask
from steerscope.steering.prompt_end import Columns, SpecialTokens, columns_of, ends_from_labels


@dataclass(frozen=True)
class Pass:
    """One run of the decoder.

    Attributes:
        mask: Which of its tokens are edited ``(batch token)``, None for all.
        is_edited: Whether edits act at all.
    """

    mask: Tensor | None = None
    is_edited: bool = True


@dataclass(frozen=True)
class Told:
    """What the caller said.

    Attributes:
        prompt_lengths: Tokens of every prompt ``(batch)``, padding not counted.
        labels: ``(batch token)``; where they start to supervise, the prompt ends.
        mask: Which tokens are edited ``(batch column)``, for positions ``mask``.
        generation: What is being generated.
    """

    prompt_lengths: Tensor | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    generation: Generation | None = None


class _OfThread(threading.local):
    """What belongs to the passes of one thread."""

    def __init__(self) -> None:
        self.told = Told()
        self.is_active = True  # nothing is asked of the caller while edits are off
        self.under_way: Pass | None = None
        self.latest = Pass()
        self.switches = 0  # how often the LoRA was switched when the pass began


class Passes:
    """Keeps the pass under way; ``current`` is what edits ask."""

    def __init__(
        self,
        owner: object,
        positions: Positions,
        base: nn.Module,
        decoder: nn.Module,
        blocks: Sequence[nn.Module],
        edited_inside: Set[nn.Module],
    ) -> None:
        self.owner = owner
        self.positions, self.blocks, self._edited_inside = positions, blocks, edited_inside
        self._base = base
        self._mine = _OfThread()
        self._lock = threading.Lock()
        self._without_lora: int | None = None  # the thread that switched the LoRA off
        self._switches = 0
        self._signature = inspect.signature(decoder.forward)
        self._handles = [
            decoder.register_forward_pre_hook(self._open, with_kwargs=True),
            decoder.register_forward_hook(self._close, always_call=True),
        ]

    def close(self) -> None:
        """Stop watching, and give the blocks their own checkpointing functions back."""
        for handle in self._handles:
            handle.remove()
        forget_pass(self, self.blocks)

    @property
    def current(self) -> Pass:
        """The pass under way in this thread.

        Raises:
            InputError: A block runs by itself, and which of its tokens are edited depends on the whole sequence.
        """
        mine = self._mine
        if mine.under_way is not None:
            return mine.under_way
        if self.positions.rule != "all" and mine.is_active:
            raise InputError(
                f"a block was called by itself, where positions {self.positions.text!r} cannot be told. Call the "
                "model, or use disable_adapter()."
            )
        return Pass(is_edited=mine.is_active)

    @property
    def latest(self) -> Pass:
        """The latest pass of this thread."""
        return self._mine.latest

    @property
    def is_active(self) -> bool:
        """Whether edits act in passes of this thread."""
        return self._mine.is_active

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Make no edits in this thread inside the context."""
        before, self._mine.is_active = self._mine.is_active, False
        try:
            yield
        finally:
            self._mine.is_active = before

    @contextmanager
    def lora_switched_off(self) -> Iterator[None]:
        """Refuse passes of other threads inside the context: PEFT switches a LoRA off in all of them.

        Raises:
            InputError: Another thread is inside already.
        """
        here = threading.get_ident()
        with self._lock:
            outer = self._without_lora
            if outer not in (None, here):
                raise self._lora_is_off()
            self._without_lora = here
            self._switches += 1
        try:
            yield
        finally:
            with self._lock:
                self._without_lora = outer
                self._switches += 1

    def _lora_is_off(self) -> InputError:
        return InputError(
            "another thread is inside disable_adapter(), and PEFT switches the LoRA underneath off for all threads. "
            "Use disable_adapter(keep_lora=True) there, or one thread at a time."
        )

    def trains_inside(self, block: nn.Module) -> bool:
        """Whether edits that are trained act inside the block, not only on what enters and leaves it."""
        return block in self._edited_inside

    def of_generation(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        prompt_lengths: Tensor | None,
        mask: Tensor | None,
    ) -> Told:
        """Return what a call of ``generate`` tells; see :func:`generation_of`, which may add to ``kwargs``.

        Args:
            model: The language model that generates: the one watched, or one that it assists.
            args: The call's.
            kwargs: The call's.
            prompt_lengths: Tokens of every prompt, where the caller gave them.
            mask: For positions ``mask``.

        Raises:
            InputError: It cannot be told where the prompts end.
        """
        if self.positions.rule == "all" or not self.is_active:
            return Told(mask=mask)
        return Told(mask=mask, generation=generation_of(model, self.positions, args, kwargs, prompt_lengths))

    @contextmanager
    def told(self, told: Told) -> Iterator[None]:
        """Inside the context, passes of this thread use what the caller said."""
        before, self._mine.told = self._mine.told, told
        try:
            yield
        finally:
            self._mine.told = before

    @contextmanager
    def reopened(self, earlier: Pass) -> Iterator[None]:
        """Inside the context the pass is an earlier one: its blocks run again in its backward, in whichever thread."""
        before, self._mine.under_way = self._mine.under_way, earlier
        try:
            yield
        finally:
            self._mine.under_way = before

    def _open(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None:  # another thread takes the edits off at this moment
            return
        mine = self._mine
        if module.training:
            remember_pass(self, self.blocks)
        with self._lock:
            if self._without_lora not in (None, threading.get_ident()):
                raise self._lora_is_off()
            mine.switches = self._switches
        mine.under_way = mine.latest = Pass(self._mask(args, kwargs) if mine.is_active else None, mine.is_active)

    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        mine = self._mine
        was_open, mine.under_way = mine.under_way is not None, None
        if was_open and output is not None and mine.switches != self._switches:
            raise self._lora_is_off()

    def _mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return which tokens of a pass are edited, None for all."""
        if self.positions.rule == "all":
            return None
        rule = self.positions.text
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids = given.get("input_ids")
        ids = given.get("inputs_embeds") if ids is None else ids
        if ids is None:
            raise InputError("the decoder was called without input_ids and inputs_embeds; pass one of them.")
        columns, ends = self._columns(given, ids, rule)
        return token_mask(self.positions, columns, ends=ends, given=self._mine.told.mask)

    def _columns(self, given: dict[str, Any], ids: Tensor, rule: str) -> tuple[Columns, Tensor | None]:
        """Return the pass's columns, and how many tokens the prompts have, as far as it is known."""
        told = self._mine.told
        if told.generation is not None:
            columns, lengths = told.generation.columns(given, ids, rule)
            return columns, lengths[:, None]
        special = SpecialTokens.of(language_model(self._base))
        columns = columns_of(given, ids, special, rule)
        if not self.positions.need_prompt:
            return columns, None
        if told.prompt_lengths is not None:
            return columns, columns.ends_from_lengths(told.prompt_lengths)
        if told.labels is not None:
            return columns, ends_from_labels(told.labels, columns, ids, special, rule)
        return columns, None


def passes_on(decoder: nn.Module) -> Passes | None:
    """Return what watches a decoder, if anything does."""
    for hook in decoder._forward_pre_hooks.values():
        watcher = getattr(hook, "__self__", None)
        if isinstance(watcher, Passes):
            return watcher
    return None
