"""Track the current forward pass, and the mask of the tokens that are edited in it.

A hook on the decoder opens a pass, whoever calls the model: the wrapper, ``generate``, or PEFT's wrapper (which calls
``forward`` of the language model past its hooks). What the decoder does not see, where prompts end and masks of the
caller, is told beforehand. All of it is kept per thread or asyncio task, so that a model may be used in several.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.models.blocks import Block
from steerscope.models.bound import BoundParts
from steerscope.models.contexts import Entry, entered, entries
from steerscope.models.virtual_tokens import require_no_tokens_from_callers
from steerscope.models.wrappers import language_model
from steerscope.steering.adapters import Adapter
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
        adapter: Whose edits act.
        strength: What they add is multiplied by it.
    """

    mask: Tensor | None = None
    is_edited: bool = True
    adapter: Adapter | None = None
    strength: float = 1.0

    def has(self, adapter: Adapter) -> bool:
        """Whether the edits of an adapter act."""
        return self.is_edited and self.adapter is adapter


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


# States that contexts set.
_OFF, _LORA_OFF, _TOLD, _STRENGTH = "off", "LoRA off", "told", "strength"


class _OfThread(threading.local):
    """What belongs to the pass of one thread, which nothing interrupts."""

    def __init__(self) -> None:
        self.under_way: Pass | None = None
        self.latest = Pass()
        self.switches = 0  # how often the LoRA was switched when the pass began


class Passes:
    """Keeps the current forward pass; ``current`` is what edits ask."""

    def __init__(
        self,
        owner: object,
        adapter: Adapter,
        base: nn.Module,
        decoder: nn.Module,
        blocks: Sequence[Block],
    ) -> None:
        self.owner, self.adapter, self.blocks = owner, adapter, [block.module for block in blocks]
        self._parts = BoundParts(blocks)
        self._base = base
        self._mine = _OfThread()
        self._lock = threading.Lock()
        self._without_lora: list[Entry] = []  # the contexts for which PEFT switched the LoRA off
        self._lora_back = ExitStack()
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
        """The current forward pass in this thread.

        Raises:
            InputError: A block runs by itself, and which of its tokens are edited depends on the whole sequence.
        """
        mine = self._mine
        if mine.under_way is not None:
            return mine.under_way
        if self.positions.rule != "all" and self.is_active:
            raise InputError(
                f"a block was called by itself, where positions {self.positions.text!r} cannot be told. Call the "
                "model, or use disable_adapter()."
            )
        return Pass(None, self.is_active, self.adapter, self.strength)

    @property
    def positions(self) -> Positions:
        """Which tokens the adapter edits that acts now."""
        return self.adapter.positions

    @property
    def strength(self) -> float:
        """What edits are multiplied by in passes of this thread or task."""
        found = entries(self, _STRENGTH)
        return float(found[-1].value) if found else self.adapter.strength

    def at_strength(self, strength: float) -> AbstractContextManager[Entry]:
        """Multiply edits by another number in this thread or task inside the context."""
        return entered(self, _STRENGTH, strength)

    @property
    def latest(self) -> Pass:
        """The latest pass of this thread."""
        return self._mine.latest

    @property
    def is_active(self) -> bool:
        """Whether edits act in passes of this thread or task; nothing is asked of the caller while they do not."""
        return not entries(self, _OFF)

    def switched_off(self) -> AbstractContextManager[Entry]:
        """Make no edits in this thread or task inside the context."""
        return entered(self, _OFF)

    @contextmanager
    def lora_switched_off(self, switch: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Switch a LoRA off, and refuse passes of others inside the context: PEFT switches it off in all threads.

        Args:
            switch: Gives PEFT's own context; the first of several that overlap enters it, and the last leaves it.

        Raises:
            InputError: Another thread or task is inside already.
        """
        with entered(self, _LORA_OFF) as entry:
            with self._lock:
                if self._without_lora and not self.is_without_lora():
                    raise self._lora_is_off()
                if not self._without_lora:
                    self._lora_back.enter_context(switch())
                    self._switches += 1
                self._without_lora.append(entry)
            try:
                yield
            finally:
                with self._lock:
                    self._without_lora.remove(entry)
                    if not self._without_lora:
                        self._lora_back.close()
                        self._switches += 1

    def is_without_lora(self) -> bool:
        """Whether the running code is inside a context for which the LoRA is off."""
        return any(one in self._without_lora for one in entries(self, _LORA_OFF))

    def _require_lora_as_meant(self) -> None:
        if bool(self._without_lora) != self.is_without_lora():
            raise self._lora_is_off()
        if entries(self, _LORA_OFF) and not self._without_lora:
            raise InputError(
                "this task was started inside disable_adapter(), which was left since, so the LoRA underneath acts "
                "again. Wait for the task inside the context, or use disable_adapter() in the task."
            )

    def _lora_is_off(self) -> InputError:
        return InputError(
            "another thread is inside disable_adapter(), or another task of asyncio, and PEFT switches the LoRA "
            "underneath off for all threads. Use disable_adapter(keep_lora=True) there, or one at a time."
        )

    def trains_inside(self, block: nn.Module) -> bool:
        """Whether edits that are trained act inside the block, not only on what enters and leaves it."""
        return block in self.adapter.inside

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

        Returns:
            What the passes of this call are told.

        Raises:
            InputError: It cannot be told where the prompts end.
        """
        if self.positions.rule == "all" or not self.is_active:
            return Told(mask=mask)
        return Told(mask=mask, generation=generation_of(model, self.positions, args, kwargs, prompt_lengths))

    def told(self, told: Told) -> AbstractContextManager[Entry]:
        """Inside the context, passes of this thread or task use what the caller said."""
        return entered(self, _TOLD, told)

    @property
    def _told(self) -> Told:
        found = entries(self, _TOLD)
        return found[-1].value if found else Told()

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
            self._require_lora_as_meant()
            mine.switches = self._switches
        if self.is_active:
            self._parts.require()
        mask = self._mask(args, kwargs) if self.is_active else None
        mine.under_way = mine.latest = Pass(mask, self.is_active, self.adapter, self.strength)

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
        if ids.dim() != 2 or given.get("past_key_values") is not None:
            require_no_tokens_from_callers(language_model(self._base), f"positions {rule!r} are counted without them")
        columns, ends = self._columns(given, ids, rule)
        return token_mask(self.positions, columns, ends=ends, given=self._told.mask)

    def _columns(self, given: dict[str, Any], ids: Tensor, rule: str) -> tuple[Columns, Tensor | None]:
        """Return the pass's columns, and how many tokens the prompts have, as far as it is known."""
        told = self._told
        if told.generation is not None:
            columns, lengths = told.generation.columns(given, ids, rule)
            return columns, lengths[:, None]
        special = SpecialTokens.of(language_model(self._base))
        columns = columns_of(given, ids, special, rule)
        if not self.positions.need_prompt:
            return columns, None
        if told.prompt_lengths is not None:
            fills = bool(given.get("use_cache")) or given.get("past_key_values") is not None
            return columns, columns.ends_from_lengths(told.prompt_lengths, is_whole=not fills)
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
