"""Tasks with generated answers: templates, gold completions, parts that share nothing, and bad rows."""

import os
import random

import pytest

from steerscope import InputError
from steerscope.experiments.tasks import answer_task_names, get_answer_task
from steerscope.experiments.tasks.answer_task import AnswerExample, fingerprint, is_cut_off, majority
from steerscope.experiments.tasks.formats.listops import SIZES
from tests.experiments.tasks.rows import ALL, TASKS, row, write_rows, write_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        write_task(place, task)
    return place


def is_right(task, text: str, example: AnswerExample) -> bool:
    found = task.form.parse(text, example)
    return found is not None and task.form.same(found, example.answer)


def test_names():
    assert set(answer_task_names()) == set(TASKS)
    with pytest.raises(InputError, match="Did you mean 'winogrande'"):
        get_answer_task("winogrand")


@pytest.mark.parametrize("name", TASKS)
def test_gold_completions_score_and_others_do_not(folder, name):
    task = get_answer_task(name, folder)
    for part in ALL:
        for example in task.split(part):
            assert is_right(task, example.completion, example)
            assert is_right(task, f" {example.completion}\n", example)
            assert not is_right(task, "", example)
            assert not is_right(task, "I cannot say.", example)
            for index, choice in enumerate(example.choices or ()):
                assert is_right(task, choice, example) == (index == example.answer_index)


# Not GSM8K: its prompt is the question alone, and without a phrase the last number of a text counts.
@pytest.mark.parametrize("name", [name for name in TASKS if name != "gsm8k"])
def test_an_instruction_never_scores_by_a_default(folder, name):
    # The instruction of BoolQ says "true/false", that of ListOps holds an answer tag: none of it is an answer.
    task = get_answer_task(name, folder)
    for example in task.split("test"):
        instruction = example.prompt.partition("\n")[0]
        assert task.form.parse(instruction, example) is None


@pytest.mark.parametrize("name", TASKS)
def test_parts_share_no_question(folder, name):
    task = get_answer_task(name, folder)
    parts = {part: task.split(part) for part in ALL}
    contents = {part: {one.content for one in found} for part, found in parts.items()}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not contents[first] & contents[second]
    assert all(contents.values())
    assert task.split("train", 5, 3) == task.split("train", 9, 3)[:5]
    assert task.split("train", 5, 3) != task.split("train", 5, 4)
    with pytest.raises(InputError, match=f"asked for 1000 test examples of {name}; expected 1 to {len(parts['test'])}"):
        task.split("test", 1000)
    for bad in (0, -1, True, 2.0):
        with pytest.raises(InputError, match="expected 1 to"):
            task.split("test", bad)
    with pytest.raises(InputError, match="Did you mean 'test'"):
        task.split("tests")


def test_published_overlaps_are_dropped_from_the_lower_part(tmp_path):
    write_rows(tmp_path, "aqua-test", [row("aqua", 0), row("aqua", 1)])
    write_rows(tmp_path, "aqua-validation", [row("aqua", 1), row("aqua", 2)])
    shouted = row("aqua", 0) | {"question": "WHAT  is 0 + 1?", "choices": ["1", "x", "y", "z", "w"], "answer_index": 0}
    write_rows(tmp_path, "aqua-train", [shouted, row("aqua", 2), row("aqua", 3), row("aqua", 3)])
    task = get_answer_task("aqua", tmp_path)
    assert [len(task.split(part)) for part in ALL] == [1, 1, 2]


@pytest.mark.parametrize("name", ["boolq", "winogrande"])
def test_groups_are_not_cut_and_the_cut_is_a_tenth(tmp_path, name):
    write_task(tmp_path, name, (600, 10, 10))
    task = get_answer_task(name, tmp_path)
    train, validation = task.split("train"), task.split("validation")
    assert not {one.group for one in train} & {one.group for one in validation}
    assert len({one.group for one in train}) < 0.6 * len(train)  # groups are pairs here: the line above says something
    assert 0.05 < len(validation) / 600 < 0.16
    assert all(is_cut_off(one) for one in validation)
    # The order of the file decides nothing.
    rows = [row(name, i) for i in range(600)]
    random.Random(1).shuffle(rows)
    (tmp_path / "again").mkdir()
    write_rows(tmp_path / "again", f"{name}-train", rows)
    write_rows(tmp_path / "again", f"{name}-validation", [row(name, 600 + i) for i in range(10)])
    again = get_answer_task(name, tmp_path / "again")
    assert again.split("validation") == validation
    assert again.split("train", 20, 7) == task.split("train", 20, 7)


def test_templates(folder):
    def first(name):
        return min(get_answer_task(name, folder).split("test"), key=lambda one: one.prompt)

    boolq = first("boolq")
    assert boolq.prompt.startswith(
        "Answer the question with a true/false based on the given passage.\nPassage: Number "
    )
    assert boolq.prompt.endswith(" come\n")
    assert boolq.completion in ("Answer: True.", "Answer: False.")
    wino = first("winogrande")
    assert wino.prompt.startswith(
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
    )
    assert wino.prompt.endswith("\nOption1: Ann\nOption2: Bob\n")
    arc = first("arc_easy")
    assert arc.prompt.startswith("Answer the following multiple-choice question.\nQuestion: Which one has ")
    assert "\n(A) a bee with " in arc.prompt
    assert arc.completion.startswith(f"Answer: ({arc.answer}) ")
    assert all(choice.endswith(".") and not choice.endswith("..") for choice in arc.choices)
    aqua = first("aqua")
    assert aqua.completion.endswith("\nAnswer: B.")
    assert aqua.completion.startswith("Add one to ")
    assert aqua.choices == tuple(f"Answer: {x}." for x in "ABCDE")
    gsm = first("gsm8k")
    assert gsm.prompt.endswith("How many pens is that?\n")
    assert gsm.choices is None
    assert "<<" in gsm.completion
    listops = first("listops")
    assert listops.prompt.endswith(
        "inside <answer>…</answer>.\n\nExpression:\n" + listops.prompt.split("\n")[-2] + "\n"
    )
    assert listops.completion == f"<answer>{listops.answer}</answer>"


def test_numeric_labels_and_fewer_options(folder):
    examples = [one for one in get_answer_task("arc_easy", folder).split("train") if len(one.options) == 3]
    assert examples
    for example in examples:
        assert "(D)" not in example.prompt
        assert get_answer_task("arc_easy", folder).form.parse("Answer: (D) x.", example) is None


def test_bare_listops_asks_the_same_questions(folder):
    for place in (None, folder):
        tagged, bare = (get_answer_task(name, place).split("test", 5) for name in ("listops", "listops_bare"))
        if place is None:  # rows of files are ordered by their prompt
            assert [one.content for one in bare] == [one.content for one in tagged]
        assert all(one.prompt.endswith("] =") and one.completion == f" {one.answer}" for one in bare)


@pytest.mark.parametrize("name", ["listops", "listops_bare"])
def test_generated_listops(name):
    task = get_answer_task(name)
    parts = {part: task.split(part, 200, 1) for part in ALL}
    for examples in parts.values():
        assert all(is_right(task, one.completion, one) for one in examples)
    contents = [{one.content for one in examples} for examples in parts.values()]
    assert len(set.union(*contents)) == sum(map(len, contents)) == 600
    assert majority(parts["test"])[1] < 0.2
    assert len(task.split("validation")) == SIZES["validation"]


def test_majority_and_fingerprint():
    def example(prompt, answer):
        return AnswerExample(prompt, answer, answer)

    found = [example("a", "1"), example("b", "2"), example("c", "2")]
    assert majority(found) == ("2", 2 / 3)
    assert fingerprint(found) == fingerprint(found[::-1])
    assert fingerprint(found) != fingerprint(found[:2])
    assert fingerprint(found) != fingerprint([*found[:2], example("c", "3")])


BAD = [
    ("boolq", {"question": "q", "answer_index": 1}, "field 'passage' is missing"),
    ("boolq", {"passage": "p", "question": " ", "answer_index": 1}, "question is ' ', expected a text"),
    ("boolq", {"passage": "p", "question": "q", "answer_index": 2}, "answer_index is 2, expected an integer from 0 to"),
    ("boolq", {"passage": "p", "question": "q", "answer_index": True}, "answer_index is True"),
    ("winogrande", {"question": "q", "choices": ["a"], "answer_index": 0}, "choices has 1 entries, expected 2 to 2"),
    ("arc_easy", {"question": "q", "choices": "ab", "answer_index": 0}, "choices is 'ab', expected a list of texts"),
    ("arc_easy", {"question": "q", "choices": ["a", 3], "answer_index": 0}, "expected a list of texts"),
    ("aqua", {"question": "q", "choices": ["a", "b"], "answer_index": 0}, "field 'rationale' is missing"),
    ("gsm8k", {"question": "q", "solution": "s", "answer": "five"}, "Invalid literal for Fraction"),
    ("gsm8k", {"question": "q", "solution": "s", "answer": 5}, "answer is 5, expected a text"),
    ("listops", {"question": "q", "answer_index": 10}, "expected an integer from 0 to 9"),
    ("boolq", "[1, 2]", "is a list; expected a JSON object"),
    ("boolq", "{", "is not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bad", "message"), BAD)
def test_a_bad_row_is_named_by_its_line(tmp_path, name, bad, message):
    write_task(tmp_path, name)
    part = "validation" if name in ("boolq", "winogrande") else "test"
    write_rows(tmp_path, f"{name}-{part}", [row(name, 1), bad])
    with pytest.raises(InputError, match=f"{name}-{part}.jsonl.gz, line 2 ") as caught:
        get_answer_task(name, tmp_path).split("test")
    assert message in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="there is no folder 'nowhere'"):
        get_answer_task("boolq", "nowhere")
    write_task(tmp_path, "arc_easy")
    with pytest.raises(InputError, match=r"needs arc_challenge-test.jsonl or arc_challenge-test.jsonl.gz"):
        get_answer_task("arc_challenge", tmp_path).split("test")
    (tmp_path / "arc_easy-test.jsonl.gz").write_bytes((tmp_path / "arc_easy-test.jsonl.gz").read_bytes()[:80])
    with pytest.raises(InputError, match="gzip stream is damaged"):
        get_answer_task("arc_easy", tmp_path).split("test")
    write_rows(tmp_path, "gsm8k-test", [])
    with pytest.raises(InputError, match="test part of task 'gsm8k' has no rows"):
        get_answer_task("gsm8k", tmp_path).split("test")
    write_rows(tmp_path, "gsm8k-test", [row("gsm8k", 1)], packed=False)  # a plain file is read before a packed one
    assert len(get_answer_task("gsm8k", tmp_path).split("test")) == 1


# The public files in the same form, where a copy is at hand.
DATA = os.environ.get("STEERSCOPE_TASK_DATA")


@pytest.mark.skipif(not DATA, reason="STEERSCOPE_TASK_DATA names no folder with the tasks' files")
@pytest.mark.parametrize("name", TASKS)
def test_gold_completions_of_the_published_rows(name):
    task = get_answer_task(name, DATA)
    for part in ALL:
        examples = task.split(part)
        assert [one.completion for one in examples if not is_right(task, one.completion, one)] == []
        for example in examples:
            for index, choice in enumerate(example.choices or ()):
                assert is_right(task, choice, example) == (index == example.answer_index)
