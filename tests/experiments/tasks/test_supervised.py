"""Tokens to learn from: the end is learned, nothing is cut, and generation starts where supervision does."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerscope import InputError
from steerscope.experiments.tasks.supervised import completion_tokens, supervise
from steerscope.experiments.tasks.task import TaskExample
from tests.byte_models import byte_tokenizer

EXAMPLES = [TaskExample("ask\n", "Answer: 7", answer="7"), TaskExample("a long question\n", "Answer: 8", answer="8")]


@pytest.mark.parametrize("options", [{}, {"pad_token": "<eos>"}])  # a padding token that is also the end
def test_the_end_is_learned(options):
    tokenizer = byte_tokenizer(**options)
    found = supervise(EXAMPLES, tokenizer, None)
    assert found.kept == (0, 1)
    for example, sequence in zip(EXAMPLES, found.sequences, strict=True):
        assert sequence.ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(sequence.ids[sequence.first_target : -1]) == example.completion
        assert list(sequence.ids[: sequence.first_target]) == tokenizer(example.prompt)["input_ids"]


def test_what_does_not_fit_is_left_out_whole():
    exact = len("ask\n") + len("Answer: 7") + 1
    found = supervise(EXAMPLES, byte_tokenizer(), exact)
    assert (found.kept, found.too_long) == ((0,), (1,))
    assert len(found.sequences[0].ids) == exact
    with pytest.raises(InputError, match="none of 2 examples fits into 13 tokens with its answer"):
        supervise(EXAMPLES, byte_tokenizer(), exact - 1)


def test_no_end_token():
    with pytest.raises(InputError, match="no end-of-sequence token"):
        supervise(EXAMPLES, byte_tokenizer(eos_token=None), None)


def test_a_tokenizer_that_joins_across_the_boundary():
    words = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "<eos>": 4}
    backend = Tokenizer(models.BPE(words, [("a", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    assert tokenizer("ab")["input_ids"] == [3]
    # The model will be given "a" when it generates, so this is what it must be trained to continue.
    assert completion_tokens("a", "b", tokenizer) == ([1], [2])
