"""The threads and the memory of this process.

Independent pieces of work run side by side, on as many threads as torch may use, each with one of its own: matrices of
a thousand rows are too small for several threads to share. They would wait for each other more than they work, and most
where a machine does something else beside.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_THREADS = 8
"""At most so many: each takes memory of its own, and few machines feed more."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads_at_once() -> int:
    """Return how many threads :func:`side_by_side` uses: as many as torch may, at most :data:`MOST_THREADS`."""
    return min(torch.get_num_threads(), MOST_THREADS)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``work(item)`` for every item, in the items' order.

    With one thread of torch this is :func:`map`. Results are made at most a few ahead of what is asked for, so that
    they take no more memory than that; those begun are waited for where the caller stops early or one fails. Until the
    last one is taken, the caller has one thread of torch too.

    Args:
        work: What is done with an item; it may run in several threads at once.
        items: What it is done with.

    Yields:
        The results.
    """
    available, threads = torch.get_num_threads(), threads_at_once()
    if threads < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    # Not the caller's either: threads that have shared an operation keep a core busy for a while, waiting for the next.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, "steerscope", torch.set_num_threads, (1,)) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) > threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()
    finally:
        torch.set_num_threads(available)  # the number is also that of threads which others begin later


def return_freed_memory() -> None:
    """Let the system have freed memory again: glibc would keep what a batch or a kernel took beside what grows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def keep_few_compiled_products() -> None:
    """Have oneDNN keep 32 of the products that it compiles, not 1024.

    Each takes most of a megabyte, and batches of another length bring a dozen: 90 MB in a ranking, and nothing uses
    them again. It reads the environment once, when it first computes: the command line, whose process is its own, asks
    for it at the start. A number that is set already stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
