"""Which examples a capture runs together: memory that features fill later is room for the graphs of earlier batches."""

from __future__ import annotations

from statistics import median

from steerscope.analysis.data.encoding import Encoded
from steerscope.models.lengths import is_beyond

# Tokens of the first batch and of the last, in those of ``batch_size`` sequences of median length. Features fill from
# batch to batch, so that batches of one size would reach the peak of memory at the end.
_FIRST, _LAST = 1.8, 0.3


def planned_batches(encoded: Encoded, batch_size: int) -> list[list[int]]:
    """Return the examples of every batch of a capture: longest first, and fewer tokens from batch to batch.

    All sequences of an example share a batch, however many they are, and no batch has sequences on both sides of
    ``encoded.switch``. A batch of several examples keeps to its tokens, padding included, and to 1.8 times
    ``batch_size`` sequences, whose logits take room too.

    Args:
        encoded: The examples as tokens.
        batch_size: Sequences of median length in a batch halfway; with 1 every example has a batch of its own.

    Returns:
        Every example, in one batch.
    """
    sizes = _sizes(encoded)
    usual = batch_size * median(len(sequence.ids) for sequence in encoded.sequences)
    total, done, held, width, limit = len(encoded.sequences), 0, 0, 0, 0.0
    found: list[list[int]] = []
    for example in sorted(sizes, key=lambda one: (-sizes[one][1], one)):
        rows, length = sizes[example]
        crosses = is_beyond(length, encoded.switch) != is_beyond(width, encoded.switch)
        if not found or crosses or (held + rows) * width > limit or held + rows > int(_FIRST * batch_size):
            found.append([])
            held, width = 0, length
            limit = usual * (_FIRST + (_LAST - _FIRST) * done / total)
        found[-1].append(example)
        held, done = held + rows, done + rows
    return found


def tokens_of(encoded: Encoded, batches: list[list[int]]) -> list[int]:
    """Return the tokens of each batch, padding included.

    Args:
        encoded: The examples as tokens.
        batches: The examples of each.

    Returns:
        One number per batch.
    """
    sizes = _sizes(encoded)
    return [sum(sizes[one][0] for one in batch) * max(sizes[one][1] for one in batch) for batch in batches]


def _sizes(encoded: Encoded) -> dict[int, tuple[int, int]]:
    """Return per example how many sequences it has, and the length of the longest."""
    found: dict[int, tuple[int, int]] = {}
    for sequence in encoded.sequences:
        rows, longest = found.get(sequence.example, (0, 0))
        found[sequence.example] = rows + 1, max(longest, len(sequence.ids))
    return found
