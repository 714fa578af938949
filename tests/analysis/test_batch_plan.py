"""A capture's batches: every example once, longest first, and smaller from batch to batch."""

from __future__ import annotations

import random

import pytest
import torch

from steerscope.analysis.capture.batch_plan import planned_batches, tokens_of
from steerscope.analysis.data.encoding import Encoded, OutputMode, TokenSequence, batches_of


def encoded_of(lengths: list[list[int]], switch: int | None = None) -> Encoded:
    """Return examples whose sequences have these lengths."""
    sequences = tuple(
        TokenSequence((1,) * length, example, choice, 1)
        for example, own in enumerate(lengths)
        for choice, length in enumerate(own)
    )
    answers = (0,) * len(lengths)
    return Encoded(OutputMode.CHOICE_LIKELIHOODS, sequences, (), answers, tuple(map(len, lengths)), switch)


def random_lengths(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randint(3, 40) for _ in range(draw.randint(1, 4))] for _ in range(60)]


@pytest.mark.parametrize("batch_size", [1, 4, 16, 500])
@pytest.mark.parametrize("seed", range(3))
def test_every_example_is_in_one_batch_longest_first(batch_size, seed):
    encoded = encoded_of(random_lengths(seed))
    found = planned_batches(encoded, batch_size)
    assert sorted(example for batch in found for example in batch) == list(range(60))
    longest = [max(len(s.ids) for s in encoded.sequences if s.example == one) for batch in found for one in batch]
    assert longest == sorted(longest, reverse=True)
    made = batches_of(encoded, found, pad_id=0, device=torch.device("cpu"))
    assert [batch.ids.numel() for batch in made] == tokens_of(encoded, found)


def test_batches_become_smaller_but_hardly_more():
    found = planned_batches(encoded_of([[20]] * 192), 16)
    rows = [len(batch) for batch in found]
    assert rows[0] == int(16 * 1.8)
    assert rows[-2] == min(rows[:-1]) < 16 / 2
    assert rows[:-1] == sorted(rows[:-1], reverse=True)
    assert len(rows) <= 1.2 * 192 / 16


def test_a_batch_of_several_keeps_to_its_tokens():
    encoded = encoded_of(random_lengths(5))
    usual = 16 * sorted(len(s.ids) for s in encoded.sequences)[len(encoded.sequences) // 2]
    found = planned_batches(encoded, 16)
    for batch, tokens in zip(found, tokens_of(encoded, found), strict=True):
        assert len(batch) == 1 or tokens <= 1.8 * usual
        rows = sum(s.example in batch for s in encoded.sequences)
        assert len(batch) == 1 or rows <= 1.8 * 16


def test_short_texts_among_many_long_ones_share_a_batch_with_few():
    found = planned_batches(encoded_of([[200]] * 100 + [[8]] * 92), 16)
    assert max(map(len, found)) == int(16 * 1.8)
    assert all(len(batch) == 1 for batch in planned_batches(encoded_of([[100]] * 51 + [[10]] * 49), 1))


def test_rows_on_both_sides_of_a_switch_share_no_batch():
    encoded = encoded_of([[length] for length in range(2, 40)], switch=17)
    for batch in planned_batches(encoded, 16):
        lengths = [len(encoded.sequences[example].ids) for example in batch]
        assert min(lengths) > 17 or max(lengths) <= 17
