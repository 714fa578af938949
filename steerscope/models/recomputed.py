"""Edits of blocks under gradient checkpointing, which run again in backward, maybe after the edits' context."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from steerscope.errors import InputError
from steerscope.models.contexts import Entry, hooks_here

# Where transformers keeps a block's checkpointing function.
ATTRIBUTE = "_gradient_checkpointing_func"


class _Anew(threading.local):
    """The contexts that this thread entered anew for the block that runs again."""

    entries: frozenset[Entry] = frozenset()


_anew = _Anew()


@contextmanager
def recomputed_with(blocks: Sequence[nn.Module], again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Let blocks that run inside the context run again, in backward, as they ran: also after it has ended.

    Args:
        blocks: Those that are edited.
        again: Returns a context that sets the hooks anew, for a run after this context has ended.
    """
    has_ended = False

    def remembering(inner: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(function: Callable[..., Any], *args: Any) -> Any:
            around = hooks_here()

            def run(*inputs: Any) -> Any:
                there = hooks_here()
                if there - around - _anew.entries:
                    raise InputError(
                        "a block under gradient checkpointing runs again in backward inside edited() or reading() that "
                        "its pass was not in, whose hooks would act on it. Call backward() outside of them."
                    )
                if not has_ended:
                    return function(*inputs)
                before = _anew.entries
                with again():
                    _anew.entries = before | (hooks_here() - there)
                    try:
                        return function(*inputs)
                    finally:
                        _anew.entries = before

            return inner(run, *args)

        return checkpointed

    before = {block: block.__dict__[ATTRIBUTE] for block in blocks if block.__dict__.get(ATTRIBUTE) is not None}
    ours = {block: remembering(inner) for block, inner in before.items()}
    for block, function in ours.items():
        setattr(block, ATTRIBUTE, function)
    try:
        yield
    finally:
        has_ended = True
        for block, inner in before.items():
            if block.__dict__.get(ATTRIBUTE) is ours[block]:
                setattr(block, ATTRIBUTE, inner)
