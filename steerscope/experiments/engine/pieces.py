"""Cut the rows of a step by length, so that short ones are not padded to the longest of all runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from steerscope.experiments.shared_prefix import drops
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.lengths import switch_length
from steerscope.models.wrappers import language_model

Batch = Sequence[SupervisedSequence]
# What one more pass costs beside its tokens, as so many tokens: calls of modules on a CPU, launches on a GPU.
PASS, GPU_PASS = 64, 16384
# Numbers in the residual stream of a pass that keep a CPU busy; more only take memory.
NUMBERS = 2**20
_NEVER = 2**60


def may_cut(model: nn.Module) -> bool:
    """Whether a model's rows may be run in several passes instead of one.

    Returns:
        No where dropout is drawn, for rows as they stand together, or a rotary embedding switches its factors by them.
    """
    return not drops(model) and switch_length(language_model(model)) is None


def pieces_of(
    batches: Sequence[Batch], start: int, fixed: int, most: int | None = None
) -> list[tuple[list[int], list[Batch]]]:
    """Cut the batches of several runs into passes of similar length, such that the fewest tokens are computed.

    Args:
        batches: Per run its sequences, the same number for all. Batches that are one object hold the same rows, and so
            do their parts.
        start: How many tokens all rows begin with that are computed once per run and pass.
        fixed: What one more pass costs, in tokens.
        most: Most tokens of a pass, of one row of each run at least; None for any number.

    Returns:
        Per pass the places of its runs in ``batches``, and a part of the batch of each, as many sequences for all; one
        pass of the batches themselves where cutting does not pay. Every sequence of every run is in one pass.

    Cost: no tensors; operations of Python that grow with the square of the batch and of the number of different ones.
    """
    places: dict[int, list[int]] = {}
    for place, batch in enumerate(batches):
        places.setdefault(id(batch), []).append(place)
    # Runs whose batches are about as long share passes; within them rows are in the order of their length.
    sharing = sorted(places.values(), key=lambda own: sum(len(row.ids) for row in batches[own[0]]))
    ordered = [sorted(batches[own[0]], key=lambda row: len(row.ids)) for own in sharing]

    def within(first: int, stop: int) -> tuple[int, list[int]]:
        """Return the cost of the runs of some batches, and where their rows are cut."""
        runs = sum(map(len, sharing[first:stop]))
        widths = [max(len(row.ids) for row in column) for column in zip(*ordered[first:stop], strict=True)]

        def cost(i: int, j: int) -> int:
            tokens = runs * ((j - i) * (widths[j - 1] - start) + start)
            return _NEVER if most is not None and tokens > most and j - i > 1 else tokens + fixed

        return _cheapest(len(widths), cost)

    _, groups = _cheapest(len(ordered), lambda first, stop: within(first, stop)[0])
    pieces: list[tuple[list[int], list[Batch]]] = []
    for first, stop in pairwise(groups):
        for i, j in pairwise(within(first, stop)[1]):
            own: dict[int, Batch] = {}
            for runs, rows in zip(sharing[first:stop], ordered[first:stop], strict=True):
                own |= dict.fromkeys(runs, rows[i:j])
            pieces.append((sorted(own), [own[place] for place in sorted(own)]))
    return pieces if len(pieces) > 1 else [(list(range(len(batches))), list(batches))]


def _cheapest(count: int, cost: Callable[[int, int], int]) -> tuple[int, list[int]]:
    """Cut a row of things into pieces of the least cost in all.

    Args:
        count: How many things.
        cost: Of a piece, by its first thing and the one behind its last.

    Returns:
        The cost, and where pieces begin, with ``count`` as the last; of equal costs the fewest pieces.
    """
    best, begins = [0], [0]
    for stop in range(1, count + 1):
        found, begin = min((best[begin] + cost(begin, stop), begin) for begin in range(stop))
        best.append(found)
        begins.append(begin)
    cuts = [count]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    return best[count], cuts[::-1]
