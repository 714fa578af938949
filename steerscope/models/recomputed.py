"""Edits of blocks under gradient checkpointing, which run again in backward, maybe after the edits' context."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn

from steerscope.errors import InputError
from steerscope.models.contexts import entered, entries, hooks_here

# Where transformers keeps a block's checkpointing function.
ATTRIBUTE = "_gradient_checkpointing_func"
_lock = threading.Lock()


class _Edits:
    """One context of edits.

    Attributes:
        again: Returns a context that sets its hooks anew.
        has_ended: Whether its hooks were taken away.
    """

    def __init__(self, again: Callable[[], AbstractContextManager[None]]) -> None:
        self.again, self.has_ended = again, False


class _Checkpointed:
    """A block's checkpointing function that remembers which edits were on; contexts of all threads share it."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner
        self.contexts: list[_Edits] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        own, around = [one for one in tuple(self.contexts) if entries(one, "edits")], hooks_here()
        if not own:
            return self.inner(function, *args)

        def run(*inputs: Any) -> Any:
            if hooks_here() - around:
                raise InputError(
                    "a block under gradient checkpointing runs again in backward inside edited() or reading() that "
                    "its pass was not in, whose hooks would act on it. Call backward() outside of them."
                )
            with ExitStack() as stack:
                for one in own:  # outermost first
                    if one.has_ended:
                        stack.enter_context(one.again())
                return function(*inputs)

        return self.inner(run, *args)


def layers_of(function: Any) -> Iterator[Any]:
    """Yield a checkpointing function and those that it was put around, outermost first."""
    while function is not None:
        yield function
        function = getattr(function, "inner", None)


@contextmanager
def recomputed_with(blocks: Sequence[nn.Module], again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Let blocks that run inside the context run again, in backward, as they ran: also after it has ended.

    Args:
        blocks: Those that are edited.
        again: Returns a context that sets the hooks anew, for a run after this context has ended.
    """
    context = _Edits(again)
    remembering: list[tuple[nn.Module, _Checkpointed]] = []
    with _lock:
        for block in blocks:
            if (found := block.__dict__.get(ATTRIBUTE)) is None:
                continue
            function = next((one for one in layers_of(found) if isinstance(one, _Checkpointed)), None)
            if function is None:
                function = _Checkpointed(found)
                setattr(block, ATTRIBUTE, function)
            function.contexts.append(context)
            remembering.append((block, function))
    try:
        with entered(context, "edits"):
            yield
    finally:
        context.has_ended = True
        with _lock:
            for block, own in remembering:
                own.contexts.remove(context)
                if not own.contexts and block.__dict__.get(ATTRIBUTE) is own:
                    setattr(block, ATTRIBUTE, own.inner)
