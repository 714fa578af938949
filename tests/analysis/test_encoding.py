"""From texts to token sequences: what is supervised, how answers are read, what a batch holds."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from steerscope.analysis.encoding import Batch, Encoded, OutputMode, TokenSequence, batches, encode
from steerscope.analysis.examples import Example
from steerscope.errors import InputError
from tests.tiny import tiny_tokenizer

BOS, EOS = 0, 1
CPU = torch.device("cpu")


def with_special_tokens(bos: bool, eos: bool) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer that adds <bos> and <eos> to every text, as many models' tokenizers do."""
    tokenizer = tiny_tokenizer()
    single = f"{'<bos> ' if bos else ''}$A{' <eos>' if eos else ''}"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer without spaces that merges ``xa`` and ``ya`` across any boundary."""
    vocab = {token: i for i, token in enumerate(["<bos>", "<eos>", "<pad>", "x", "y", "a", "b", "c", "xa", "ya"])}
    backend = Tokenizer(models.BPE(vocab, merges=[("x", "a"), ("y", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def choice(prompt: str, *choices: str, answer: int = 0) -> Example:
    return Example(prompt, choices[answer], choices, answer)


def words(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return every sequence in words, with a bar before the first supervised token."""
    found = []
    for sequence in encoded.sequences:
        tokens = tokenizer.convert_ids_to_tokens(list(sequence.ids))
        found.append(" ".join([*tokens[: sequence.first_target], "|", *tokens[sequence.first_target :]]))
    return found


def test_one_token_choices_share_one_sequence():
    tokenizer = tiny_tokenizer()
    examples = [choice("MAX 4 9 =", " 9", " 4"), choice("MIN [ 3 8 ] =", " 8", " 3", " 1", answer=1)]
    encoded = encode(examples, tokenizer, 64)
    assert encoded.mode is OutputMode.CHOICE_LOGITS
    # the answer itself is not fed: its logits stand at the last token
    assert words(encoded, tokenizer) == ["MAX 4 9 = |", "MIN [ 3 8 ] = |"]
    spelt = [tokenizer.convert_ids_to_tokens(list(tokens)) for tokens in encoded.choice_tokens]
    assert spelt == [["9", "4"], ["8", "3", "1"]]
    assert encoded.answers == (0, 1)
    assert encoded.num_choices == (2, 3)
    assert encoded.num_examples == 2
    assert encoded.num_tokens == 4 + 6
    assert [s.example for s in encoded.sequences] == [0, 1]


def test_choices_that_differ_after_common_words_are_one_token():
    tokenizer = tiny_tokenizer()
    encoded = encode([choice("MAX 4 9 =", " yes 9", " yes 4")], tokenizer, 64)
    assert encoded.mode is OutputMode.CHOICE_LOGITS
    assert words(encoded, tokenizer) == ["MAX 4 9 = yes |"]


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ((" 9 yes", " 4 no"), ["= | 9 yes", "= | 4 no"]),
        ((" 9", " 4 no"), ["= | 9", "= | 4 no"]),
        # one choice is the beginning of another
        ((" 9", " 9 yes"), ["= | 9", "= | 9 yes"]),
        ((" 9 yes no", " 9", " 9 yes"), ["= | 9 yes no", "= | 9", "= | 9 yes"]),
        # the same last token in all, a difference before it
        ((" 9 yes", " 4 yes"), ["= | 9 yes", "= | 4 yes"]),
    ],
)
def test_other_choices_have_a_sequence_each(choices, expected):
    tokenizer = tiny_tokenizer()
    encoded = encode([choice("=", *choices)], tokenizer, 64)
    assert encoded.mode is OutputMode.CHOICE_LIKELIHOODS
    assert words(encoded, tokenizer) == expected
    assert [s.choice for s in encoded.sequences] == list(range(len(choices)))
    assert encoded.choice_tokens == ()
    assert encoded.num_choices == (len(choices),)


def test_one_long_choice_makes_the_whole_set_likelihoods():
    tokenizer = tiny_tokenizer()
    encoded = encode([choice("MAX =", " 9", " 4"), choice("MIN =", " 3", " 8 8")], tokenizer, 64)
    assert encoded.mode is OutputMode.CHOICE_LIKELIHOODS
    assert words(encoded, tokenizer) == ["MAX = | 9", "MAX = | 4", "MIN = | 3", "MIN = | 8 8"]


def test_completions():
    tokenizer = tiny_tokenizer()
    encoded = encode([Example("MAX 4 9 =", " 9"), Example("SM 5 =", " 5 yes no")], tokenizer, 64)
    assert encoded.mode is OutputMode.COMPLETION
    assert words(encoded, tokenizer) == ["MAX 4 9 = | 9", "SM 5 = | 5 yes no"]
    assert encoded.num_choices == encoded.answers == (0, 0)


# --- boundaries and special tokens ---


def test_a_prompt_keeps_its_tokens_where_the_boundary_would_merge():
    tokenizer = merging_tokenizer()
    # "xa" is one token, but whoever goes on from the prompt is given "x"
    encoded = encode([Example("c x", "a b")], tokenizer, 64)
    assert words(encoded, tokenizer) == ["c x | a b"]
    assert words(encode([Example("c x", "b")], tokenizer, 64), tokenizer) == ["c x | b"]


def test_merged_choices():
    tokenizer = merging_tokenizer()
    # "a" would merge with the prompt's last token, "b" would not: the prompt is the same for both
    mixed = encode([choice("c x", "a", "b")], tokenizer, 64)
    assert mixed.mode is OutputMode.CHOICE_LOGITS
    assert words(mixed, tokenizer) == ["c x |"]
    plain = encode([choice("c x", "b", "c")], tokenizer, 64)
    assert plain.mode is OutputMode.CHOICE_LOGITS
    assert words(plain, tokenizer) == ["c x |"]


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_special_tokens_at_the_start_stay_and_at_the_end_go(bos, eos):
    tokenizer = with_special_tokens(bos, eos)
    start = "<bos> " if bos else ""
    encoded = encode([choice("MAX 4 9 =", " 9", " 4")], tokenizer, 64)
    assert encoded.mode is OutputMode.CHOICE_LOGITS
    assert words(encoded, tokenizer) == [f"{start}MAX 4 9 = |"]
    encoded = encode([Example("MAX 4 9 =", " 9 yes")], tokenizer, 64)
    assert words(encoded, tokenizer) == [f"{start}MAX 4 9 = | 9 yes"]


@pytest.mark.parametrize(
    "eos",
    [
        False,
        True,
    ],
)
def test_an_end_token_that_the_completion_spells_is_supervised_once(eos):
    tokenizer = with_special_tokens(bos=False, eos=eos)
    encoded = encode([Example("MAX 4 9 =", " 9 <eos>")], tokenizer, 64)
    assert words(encoded, tokenizer) == ["MAX 4 9 = | 9 <eos>"]


def test_choices_that_are_the_same_tokens_are_refused():
    """Words the tokenizer does not know are one token for all."""
    with pytest.raises(InputError, match="example 2"):
        encode([choice("MAX =", " 9", " 4"), choice("MAX =", " Paris", " Rome")], tiny_tokenizer(), 64)


def test_a_prompt_of_white_space_is_enough_where_a_token_stands_before_it():
    tokenizer = with_special_tokens(bos=True, eos=True)
    assert words(encode([Example(" ", "9")], tokenizer, 64), tokenizer) == ["<bos> | 9"]


# --- refusals ---

GOOD = Example("MAX 4 9 =", " 9")


def test_too_long_names_the_example_and_both_lengths():
    tokenizer = tiny_tokenizer()
    long = Example("SM [ 1 2 3 4 5 ] =", " 15 yes")
    assert encode([GOOD, long], tokenizer, 11).num_examples == 2
    assert encode([GOOD, long], tokenizer, None).num_examples == 2
    with pytest.raises(
        InputError, match=r"example 2 \('SM \[ 1 2 3 4 5 \] ='\) has 11 tokens .* context is 10\. Shorten"
    ):
        encode([GOOD, long], tokenizer, 10)
    with pytest.raises(InputError, match=r"example 1 .* has 6 tokens"):
        encode([choice("MAX 4 9 =", " 9", " 4 yes")], tokenizer, 5)


def test_a_long_prompt_is_cut_in_the_message():
    with pytest.raises(InputError) as caught:
        encode([Example("7 " * 100, " 8")], tiny_tokenizer(), 64)
    assert len(str(caught.value)) < 250
    assert "..." in str(caught.value)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("completion", [" ", "\n\n", " \t "])
def test_no_supervised_token_names_the_example(completion, bos):
    tokenizer = with_special_tokens(bos, eos=True)
    with pytest.raises(InputError, match=r"example 3 \('SM ='\) has no supervised token.*more than white space"):
        encode([GOOD, GOOD, Example("SM =", completion)], tokenizer, 64)
    with pytest.raises(InputError, match=r"example 1 \('SM ='\) has no supervised token"):
        encode([choice("SM =", " 9", completion)], tokenizer, 64)


@pytest.mark.parametrize("prompt", [" ", "\n"])
def test_a_prompt_without_a_token_names_the_example(prompt):
    with pytest.raises(
        InputError, match=r"example 2 .* predicted from nothing\. Give a prompt that is at least one token"
    ):
        encode([GOOD, Example(prompt, "9")], tiny_tokenizer(), 64)


def test_a_prompt_is_not_swallowed_by_a_merge():
    assert words(encode([Example("x", "a")], merging_tokenizer(), 64), merging_tokenizer()) == ["x | a"]


def test_no_examples():
    with pytest.raises(InputError, match="got no examples, expected at least one"):
        encode([], tiny_tokenizer(), 64)


# --- batches ---


def some(lengths: list[int], sequences: int = 1, mode: OutputMode = OutputMode.COMPLETION) -> Encoded:
    """Return examples of ``sequences`` runs each, every run a different text of the example's length."""
    runs = [
        TokenSequence(tuple(10 * e + c + t for t in range(length)), e, c, length - 1 - (c % 2))
        for e, length in enumerate(lengths)
        for c in range(sequences)
    ]
    count = len(lengths)
    return Encoded(mode, tuple(runs), (), (0,) * count, (sequences,) * count)


def all_batches(encoded: Encoded, batch_size: int, side: str = "right", examples=None) -> list[Batch]:
    return list(batches(encoded, batch_size=batch_size, pad_id=99, device=CPU, padding_side=side, examples=examples))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_every_sequence_is_in_one_batch_with_its_example(batch_size, side):
    encoded = some([5, 3, 8, 4, 3, 6], sequences=3)
    seen: list[TokenSequence] = []
    for batch in all_batches(encoded, batch_size, side):
        # an example whose sequences do not fit has a batch of its own
        assert len(batch.ids) <= batch_size or len(set(batch.example.tolist())) == 1
        for k in range(len(batch.ids)):
            real = batch.mask[k].bool()
            ids = tuple(batch.ids[k][real].tolist())
            assert (batch.ids[k][~real] == 99).all()
            assert batch.length[k] == len(ids) == real.sum()
            seen.append(TokenSequence(ids, int(batch.example[k]), int(batch.choice[k]), int(batch.first_target[k])))
        examples = batch.example.tolist()
        for example in set(examples):
            assert examples.count(example) == 3
            first = examples.index(example)
            assert examples[first : first + 3] == [example] * 3, "the rows of an example stand together"
            assert batch.choice[first : first + 3].tolist() == [0, 1, 2]
    assert sorted(seen, key=lambda s: (s.example, s.choice)) == list(encoded.sequences)


def test_examples_of_similar_length_share_a_batch():
    found = all_batches(some([9, 2, 8, 3, 2, 9]), 2)
    assert [batch.length.tolist() for batch in found] == [[2, 2], [3, 8], [9, 9]]
    assert [batch.ids.shape for batch in found] == [(2, 2), (2, 8), (2, 9)]


def test_a_part_of_the_examples():
    found = all_batches(some([4, 5, 6, 7], sequences=2), 100, examples=[3, 1])
    assert [batch.example.tolist() for batch in found] == [[1, 1, 3, 3]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_position_ids_count_real_tokens(side):
    (batch,) = all_batches(some([2, 5, 3]), 10, side)
    for k in range(3):
        real = batch.mask[k].bool()
        assert batch.position_ids[k][real].tolist() == list(range(int(real.sum())))
        assert (batch.position_ids[k] >= 0).all()
        width, length = batch.ids.shape[1], int(batch.length[k])
        assert int(batch.offset[k]) == (width - length if side == "left" else 0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_targets_are_the_supervised_tokens_and_the_position_before(side):
    encoded = some([5, 3, 8, 4], sequences=2, mode=OutputMode.CHOICE_LIKELIHOODS)
    for batch in all_batches(encoded, 6, side):
        row, column, target = batch.targets()
        found = [
            (int(batch.example[r]), int(batch.choice[r]), int(batch.ids[r, c]), int(t))
            for r, c, t in zip(row, column, target, strict=True)
        ]
        expected = []
        for k in range(len(batch.ids)):
            sequence = next(
                s for s in encoded.sequences if (s.example, s.choice) == (batch.example[k], batch.choice[k])
            )
            for position in range(sequence.first_target, len(sequence.ids)):
                pair = (sequence.ids[position - 1], sequence.ids[position])
                expected.append((sequence.example, sequence.choice, *pair))
        assert found == expected
        assert (column >= 0).all()
        assert row.tolist() == sorted(row.tolist()), "row by row"


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_last_real_token_is_where_one_token_answers_are_read(side):
    tokenizer = tiny_tokenizer()
    encoded = encode([choice("MAX 4 9 =", " 9", " 4"), choice("MIN [ 3 8 ] ?", " 8", " 3")], tokenizer, 64)
    (batch,) = all_batches(encoded, 8, side)
    rows = torch.arange(2)
    assert tokenizer.convert_ids_to_tokens(batch.ids[rows, batch.last()].tolist()) == ["=", "?"]
    # nothing is supervised inside what is fed
    assert [len(part) for part in batch.targets()] == [0, 0, 0]
