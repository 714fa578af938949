"""Which contexts the running code is inside: a model may run in several threads and asyncio tasks at once.

A context is meant for the thread or task that entered it, for the tasks that one starts inside, and for
``asyncio.to_thread``; another plain thread starts with none. Each leaving takes away its own entry alone, so contexts
that overlap instead of nesting (coroutines, half-consumed generators) do not bring back each other's states.

Gradients on an accelerator are computed by threads of torch's own, and blocks under gradient checkpointing run again in
them: there no Python context can be told, so hooks act there as long as all that are set were entered in one of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from steerscope.errors import InputError


def _who_runs() -> tuple[int, object]:
    """Return the thread and the asyncio task that run."""
    try:
        task: object = asyncio.current_task()
    except RuntimeError:  # no event loop
        task = None
    return threading.get_ident(), task


@dataclass(eq=False)
class Entry:
    """One entered context.

    Attributes:
        owner: Whose state it is.
        name: Which state.
        value: What it is set to.
        outer: The contexts it was entered inside.
        has_ended: Whether it was left by another thread or task than entered it, whose own entries cannot be reached.
        entered_by: Thread and task.
    """

    owner: object
    name: str
    value: Any
    outer: tuple[Entry, ...]
    has_ended: bool = False
    entered_by: tuple[int, object] = field(default_factory=_who_runs)


_inside: ContextVar[tuple[Entry, ...]] = ContextVar("steerscope_inside", default=())
# What hooks on modules were set for, in the order of entering.
_bound: list[Entry] = []


def entries(owner: object, name: str) -> tuple[Entry, ...]:
    """Return the contexts of one sort that the running code is inside, outermost first.

    Args:
        owner: Whose state it is; compared by identity.
        name: Which state.

    Returns:
        The entries, outermost first; empty outside of any such context.
    """
    return tuple(one for one in _all() if one.owner is owner and one.name == name)


def _all() -> tuple[Entry, ...]:
    return tuple(one for one in _inside.get() if not one.has_ended)


@contextmanager
def entered(owner: object, name: str, value: Any = None) -> Iterator[Entry]:
    """Be inside a context.

    Args:
        owner: Whose state it is.
        name: Which state.
        value: What it is set to.

    Yields:
        The context, which notes when it has ended.
    """
    entry = Entry(owner, name, value, _all())
    _inside.set((*entry.outer, entry))
    try:
        yield entry
    finally:
        # Tasks that were started inside keep what they were started with.
        entry.has_ended = entry.entered_by != _who_runs()
        _inside.set(tuple(one for one in _all() if one is not entry))


@contextmanager
def hooks_bound_here() -> Iterator[Entry]:
    """Inside the context this thread or task has hooks of its own; gives what :func:`acts_here` asks for."""
    with entered(_bound, "hooks") as entry:
        _bound.append(entry)
        try:
            yield entry
        finally:
            _bound.remove(entry)


def acts_here(owner: Entry | None) -> bool:
    """Whether a hook acts in the running code: it is its own, everyone's (None), or backward runs a block again for it.

    Returns:
        Whether it acts.

    Raises:
        InputError: A thread of torch runs a block again, and hooks of several threads or tasks are set.
    """
    if owner is None or owner in _all():
        return True
    if not _is_backward_worker():
        return False
    latest = _bound[-1]
    if not set(_bound) <= {*latest.outer, latest}:
        raise InputError(
            "several threads edit or read sites while blocks under gradient checkpointing run again in backward, where "
            "their edits cannot be told apart. Switch gradient checkpointing off, or use one thread at a time."
        )
    return True


def hooks_here() -> frozenset[Entry]:
    """Return the contexts whose hooks act in the running code: its own, in a thread of torch's all that are set."""
    if _is_backward_worker():
        return frozenset(_bound)
    return frozenset(one for one in _all() if one in _bound)


def _is_backward_worker() -> bool:
    """Whether this is a thread in which torch computes gradients: one that Python did not start, inside a backward."""
    in_backward = torch._C._current_graph_task_id() != -1
    return in_backward and isinstance(threading.current_thread(), threading._DummyThread)
