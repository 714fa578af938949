"""Which thread a hook is for: a model may run in several at once, and a context is meant for the one that entered it.

Gradients on an accelerator are computed by threads of torch's own, and blocks under gradient checkpointing run again in
them: there no Python thread can be told by name, so hooks act there as long as one thread alone has set some.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from steerscope.errors import InputError


class _Here(threading.local):
    """Something of this thread's own; numbers of threads are given again after they end."""

    def __init__(self) -> None:
        self.token = object()


_here = _Here()
# The threads that are inside a context, once for every context.
_bound: list[object] = []


@contextmanager
def bound_to_this_thread() -> Iterator[object]:
    """Inside the context this thread has hooks of its own; gives what :func:`acts_here` asks for."""
    token = _here.token
    _bound.append(token)
    try:
        yield token
    finally:
        _bound.remove(token)


def acts_here(owner: object | None) -> bool:
    """Whether a hook acts in this thread: it is its own, every thread's (None), or backward runs a block again for it.

    Raises:
        InputError: A thread of torch runs a block again, and hooks of several threads are set.
    """
    if owner is None or owner is _here.token:
        return True
    if not _is_backward_worker():
        return False
    if len(set(map(id, _bound))) > 1:
        raise InputError(
            "several threads edit or read sites while blocks under gradient checkpointing run again in backward, where "
            "their edits cannot be told apart. Switch gradient checkpointing off, or use one thread at a time."
        )
    return True


def _is_backward_worker() -> bool:
    """Whether this is a thread in which torch computes gradients: one that Python did not start, inside a backward."""
    in_backward = torch._C._current_graph_task_id() != -1
    return in_backward and isinstance(threading.current_thread(), threading._DummyThread)
