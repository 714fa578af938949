"""A user's file as a task: one cut for every command, and answers read without a default."""

import random

import pytest

from steerscope import Example, InputError
from steerscope.experiments.tasks import FileTask, at_most
from steerscope.experiments.tasks.parsing import chosen
from steerscope.experiments.tasks.supervised import AnswerTokens, answer_tokens, supervise
from tests.byte_models import byte_tokenizer
from tests.experiments.tasks.rows import ALL, write_rows


def choice(i: int, prompt: str = "Is {} odd? Answer:") -> Example:
    return Example(prompt.format(i), (" no", " yes")[i % 2], (" no", " yes"), i % 2)


def test_the_cut_is_by_prompt_alone():
    examples = [choice(i) for i in range(400)]
    # The same prompts in other letters, with other answers: a contradiction, and in one part with the first.
    again = [choice(i + 1, f"IS  {i} odd? answer:") for i in range(400)]
    task = FileTask.of("own", [*examples, *again])
    shuffled = [*examples, *again]
    random.Random(1).shuffle(shuffled)
    parts = {part: task.split(part) for part in ALL}
    assert parts == {part: FileTask.of("own", shuffled).split(part) for part in ALL}
    assert {one.content for one in parts["train"]}.isdisjoint(one.content for one in parts["test"])
    assert sum(len({one.content for one in found}) for found in parts.values()) == 400
    assert [round(len(found) / 800, 1) for found in parts.values()] == [0.6, 0.2, 0.2]
    # Another seed orders a part anew and leaves its members.
    assert sorted(one.key for one in task.split("test", seed=7)) == sorted(one.key for one in parts["test"])
    assert task.split("test", 20, 7) != parts["test"][:20]
    assert at_most(task, "test", 10**5, 0) == parts["test"]
    with pytest.raises(InputError, match="asked for 100000 test examples of own; expected 1 to "):
        task.split("test", 10**5)


def test_duplicates_are_left_out_and_said():
    task = FileTask.of("own", [*map(choice, range(60)), choice(3)])
    assert len(task.examples) == 60
    assert task.warnings == (
        "1 exact duplicate removed, 60 of 61 examples left; the first is example 61, equal to example 4 (counted from "
        "1).",
    )


def test_too_small_parts_say_how_many_prompts_it_takes(tmp_path):
    task = FileTask.read(write_rows(tmp_path, "few", [{"prompt": f"{i}", "completion": f" {i}"} for i in range(12)]))
    with pytest.raises(InputError, match=r"few.jsonl.gz has 12 .* too few for a validation: .* to train, where 24 are"):
        task.require("a validation", train=24, test=16)
    with pytest.raises(InputError, match="Give at least 104 different prompts"):
        task.require("a validation", train=24, test=16)
    enough = FileTask.of("own", list(map(choice, range(174))))
    enough.require("a validation", train=24, validation=16, test=16)
    one = FileTask.of("one", [choice(1)])
    empty = next(part for part in ALL if not one._parts[part])
    with pytest.raises(InputError, match=f"too few for a {empty} part"):
        one.split(empty)


@pytest.mark.parametrize(
    ("text", "choices", "found"),
    [
        (" yes", (" no", " yes"), "yes"),
        (" yes\nQuestion: is", (" no", " yes"), "yes"),
        (" yes.", (" no", " yes"), "yes"),
        (" yesterday", (" no", " yes"), None),
        (" Yes", (" no", " yes"), None),
        ("I say yes", (" no", " yes"), None),
        ("", (" no", " yes"), None),
        ("12", ("1", "12"), "12"),
        ("1", ("1", "12"), "1"),
        ("123", ("1", "12"), None),
        ("a dog", ("a", "a dog"), "a dog"),
        ("a dog barks", ("a", "a dog"), None),  # starts with both
        ("a cat", ("a", "a dog"), "a"),
        (" A", (" A", "A"), None),  # two choices that read the same
        ("x", (" ", "x"), "x"),
    ],
)
def test_a_choice_is_read_where_there_is_one_alone(text, choices, found):
    assert chosen(text, choices) == found


def test_generations_are_right_if_they_are_the_completion():
    task = FileTask.of("own", [Example(f"{i} + 1 =", f" {i + 1}") for i in range(60)])
    example = task.split("test")[0]
    assert task.form.parse(f"{example.completion}\n", example) == example.answer == example.completion.strip()
    for wrong in ("", " ", f"{example.completion}0", f"{example.completion} or so"):
        assert task.form.parse(wrong, example) != example.answer


def test_the_end_is_learned_where_an_answer_is_more_than_a_token():
    tokenizer = byte_tokenizer()
    digits = FileTask.of("own", [Example(f"{i}:", str(i % 2), ("0", "1"), i % 2) for i in range(9)])
    assert answer_tokens(digits.form, digits.examples, tokenizer) == AnswerTokens(1, False)
    longer = FileTask.of("own", list(map(choice, range(9))))
    assert answer_tokens(longer.form, longer.examples[:1], tokenizer) == AnswerTokens(5, True)  # of all, not of one
    (sequence,) = supervise(digits.examples[:1], tokenizer, None, ends=False).sequences
    assert len(sequence.ids) == sequence.first_target + 1
    assert sequence.ids[-1] != tokenizer.eos_token_id
    (sequence,) = supervise(longer.examples[:1], tokenizer, None, ends=True).sequences
    assert sequence.ids[-1] == tokenizer.eos_token_id
    completions = FileTask.of("own", [Example(f"{i}:", str(i)) for i in range(9)])
    assert answer_tokens(completions.form, (), tokenizer) == AnswerTokens(2, True)
