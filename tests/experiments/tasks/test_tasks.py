"""Tasks: templates, gold completions, parts that share nothing, and bad rows."""

import os
import random
import re

import pytest

from steerscope import InputError
from steerscope.experiments.tasks import get_task, task_names
from steerscope.experiments.tasks.task import TaskExample, fingerprint, is_cut_off, majority
from tests.experiments.tasks.rows import ALL, TASKS, row, write_rows, write_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        write_task(place, task)
    return place


def is_right(task, text: str, example: TaskExample) -> bool:
    found = task.form.parse(text, example)
    return found is not None and task.form.same(found, example.answer)


def test_names():
    assert set(task_names()) == set(TASKS)
    with pytest.raises(InputError, match="Did you mean 'winogrande'"):
        get_task("winogrand")


@pytest.mark.parametrize("name", TASKS)
def test_gold_completions_score_and_others_do_not(folder, name):
    task = get_task(name, folder)
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
    task = get_task(name, folder)
    for example in task.split("test"):
        instruction = example.prompt.removesuffix("Answer:").partition("\n")[0]
        assert task.form.parse(instruction, example) is None


@pytest.mark.parametrize("name", TASKS)
def test_parts_share_no_question(folder, name):
    task = get_task(name, folder)
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
    task = get_task("aqua", tmp_path)
    assert [len(task.split(part)) for part in ALL] == [1, 1, 2]


@pytest.mark.parametrize("name", ["boolq", "winogrande"])
def test_groups_are_not_cut_and_the_cut_is_a_tenth(tmp_path, name):
    write_task(tmp_path, name, (600, 10, 10))
    task = get_task(name, tmp_path)
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
    again = get_task(name, tmp_path / "again")
    assert again.split("validation") == validation
    assert again.split("train", 20, 7) == task.split("train", 20, 7)


TEMPLATES = {
    "listops": (r"\[SM \d \d \]=", r"\d"),
    "listops_gen": (r"\[SM \d \d \]=", r"\d"),
    "recall": (r"a=\d b=\d b=", r"\d"),
    "recall_capital": (r"a=\d b=\d B=", r"\d"),
    "recall_plus": (r"a=\d b=\d b\+1=", r"\d"),
    **dict.fromkeys(("compare", "compare_next", "compare_other", "compare_second"), (r"max\(\d,\d\)=", r"\d")),
    "twice": (r"[a-z] [a-z] [a-z] twice:", r" [a-z]"),
    "boolq": (r"Number \d+ came\. True or false stories were told\.\nQuestion: did \d+ come\?\nAnswer:", r" (yes|no)"),
    "boolq_closed": (r"Question: did \d+ come\?\nAnswer:", r" (yes|no)"),
    "winogrande": (r"Ann gave Bob \d+ pears because _ was \w+\.\nA\. Ann\nB\. Bob\nAnswer:", r" [AB]"),
    "arc_easy": (
        r"Question: Which one has \d+ legs\?\nA\. a bee .*\nB\. all .*\nC\. dog(\nD\. .*)?\nAnswer:",
        r" [A-D]",
    ),
    "aqua": (r"Question: What is \d+ \+ 1\?\nA\. \d+\nB\. \d+\nC\. None\nD\. \d+\nE\. \d+/3\nAnswer:", r" B"),
    "gsm8k": (r"Ann has \d+ boxes\. How many pens is that\?\n", r"First .*\nThe answer is near 5\.\nAnswer: .*"),
    "listops_paper": (
        r"Evaluate the value of the following nested list expression\.\n"
        r"Return only the final numeric result inside <answer>…</answer>\.\n\nExpression:\n\[SM \d \d \]\n",
        r"<answer>\d</answer>",
    ),
    "boolq_paper": (
        r"Answer the question with a true/false based on the given passage\.\n"
        r"Passage: Number .*\nQuestion: did \d+ come\n",
        r"Answer: (True|False)\.",
    ),
    "winogrande_paper": (
        r"Please choose the correct answer to fill in the blank to complete the given sentence: Ann .*\."
        r"\nOption1: Ann\nOption2: Bob\n",
        r"Answer: Option[12]\.",
    ),
    "arc_easy_paper": (
        r"Answer the following multiple-choice question\.\nQuestion: Which .*\?\n"
        r"\(A\) a bee .*\n\(B\) .*\n\(C\) dog\n(\(D\) .*\n)?",
        r"Answer: \([A-D]\) .*[^.]\.",
    ),
    "aqua_paper": (
        r"Answer the following multiple-choice math question\.\nQuestion: What .*\?\n\(A\) \d+\n(\(.*\n){4}",
        r"Add one to \d+\.\nAnswer: D would be too small\.\nthe answer is A bit more\.\nAnswer: B\.",
    ),
}
SAME = {
    "listops_gen_paper": "listops_paper",
    "arc_challenge": "arc_easy",
    "arc_easy_short": "arc_easy",
    "arc_challenge_paper": "arc_easy_paper",
}


@pytest.mark.parametrize("name", TASKS)
def test_templates(folder, name):
    prompt, completion = TEMPLATES[SAME.get(name, name)]
    for example in get_task(name, folder).split("test"):
        assert re.fullmatch(prompt, example.prompt)
        assert re.fullmatch(completion, example.completion)
        assert (example.choices is None) == (name in ("gsm8k", "aqua_paper"))


PAPER = [name for name in TASKS if name.endswith("_paper")]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_variant_asks_the_same_questions_in_the_same_order(folder, name):
    plain = name.removesuffix("_paper")
    for place in (folder, None) if plain == "listops" else (folder,):
        for part in ALL:
            asked = [get_task(one, place).split(part, 4, 3) for one in (plain, name)]
            assert [one.content for one in asked[0]] == [one.content for one in asked[1]]
            assert all(one.prompt != other.prompt for one, other in zip(*asked, strict=True))


def test_a_name_of_before_names_the_one_of_now():
    with pytest.raises(InputError, match=r"'listops_bare' is called 'listops' now .*'\[MAX 3 5\]='.* Name 'listops'"):
        get_task("listops_bare")


def test_a_question_without_its_passage_is_one_question(tmp_path):
    rows = [{"passage": f"Passage {i}.", "question": f"is {i % 40} odd", "answer_index": i % 2} for i in range(400)]
    write_rows(tmp_path, "boolq-train", rows)
    asked = [{"passage": "Another.", "question": "IS  39 odd?", "answer_index": 1}]
    write_rows(tmp_path, "boolq-validation", asked)
    closed = get_task("boolq_closed", tmp_path)
    parts = {part: {one.prompt for one in closed.split(part)} for part in ALL}
    assert not parts["train"] & parts["validation"]
    assert len(closed.split("train")) + len(closed.split("validation")) == len(parts["train"] | parts["validation"])
    assert not any("is 39 odd" in prompt for part in ("train", "validation") for prompt in parts[part])
    with_passage = get_task("boolq", tmp_path)
    assert sum(len(with_passage.split(part)) for part in ("train", "validation")) == 400


def test_the_short_form_keeps_short_rows_alone(tmp_path):
    rows = [
        {"question": "q" * length + f" {i}?", "choices": ["one", "t" * longest], "answer_index": i % 2}
        for i, (length, longest) in enumerate([(70, 20), (90, 20), (70, 25), (70, 24)] * 5)
    ]
    for part in ALL:
        write_rows(tmp_path, f"arc_easy-{part}", rows if part == "test" else [row("arc_easy", i) for i in range(9)])
    kept = get_task("arc_easy_short", tmp_path).split("test")
    assert len(kept) == 10
    assert all(one.prompt.count("q") == 70 and max(map(len, one.options)) <= 24 for one in kept)
    assert len(get_task("arc_easy", tmp_path).split("test")) == 20
    write_rows(tmp_path, "arc_easy-test", [{"question": "q"}])
    with pytest.raises(InputError, match="line 1 is no row of task 'arc_easy_short': field 'choices' is missing"):
        get_task("arc_easy_short", tmp_path).split("test")


def test_numeric_labels_and_fewer_options(folder):
    examples = [one for one in get_task("arc_easy", folder).split("train") if len(one.options) == 3]
    assert examples
    for example in examples:
        assert "(D)" not in example.prompt
        assert get_task("arc_easy", folder).form.parse("Answer: (D) x.", example) is None


def test_majority_and_fingerprint():
    def example(prompt, answer):
        return TaskExample(prompt, answer, answer=answer)

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
    ("aqua_paper", {"question": "q", "choices": ["a", "b"], "answer_index": 0}, "field 'rationale' is missing"),
    ("gsm8k", {"question": "q", "solution": "s", "answer": "five"}, "Invalid literal for Fraction"),
    ("gsm8k", {"question": "q", "solution": "s", "answer": 5}, "answer is 5, expected a text"),
    ("listops", {"question": "q", "answer_index": 10}, "expected an integer from 0 to 9"),
    ("boolq", "[1, 2]", "is a list; expected a JSON object"),
    ("boolq", "{", "is not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bad", "message"), BAD)
def test_a_bad_row_is_named_by_its_line(tmp_path, name, bad, message):
    write_task(tmp_path, name)
    stem, part = name.removesuffix("_paper"), "validation" if name in ("boolq", "winogrande") else "test"
    write_rows(tmp_path, f"{stem}-{part}", [row(stem, 1), bad])
    with pytest.raises(InputError, match=f"{stem}-{part}.jsonl.gz, line 2 ") as caught:
        get_task(name, tmp_path).split("test")
    assert message in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="there is no folder 'nowhere'"):
        get_task("boolq", "nowhere")
    write_task(tmp_path, "arc_easy")
    with pytest.raises(InputError, match=r"needs arc_challenge-test.jsonl or arc_challenge-test.jsonl.gz"):
        get_task("arc_challenge", tmp_path).split("test")
    (tmp_path / "arc_easy-test.jsonl.gz").write_bytes((tmp_path / "arc_easy-test.jsonl.gz").read_bytes()[:80])
    with pytest.raises(InputError, match="gzip stream is damaged"):
        get_task("arc_easy", tmp_path).split("test")
    write_rows(tmp_path, "gsm8k-test", [])
    with pytest.raises(InputError, match="test part of task 'gsm8k' has no rows"):
        get_task("gsm8k", tmp_path).split("test")
    write_rows(tmp_path, "gsm8k-test", [row("gsm8k", 1)], packed=False)  # a plain file is read before a packed one
    assert len(get_task("gsm8k", tmp_path).split("test")) == 1


# The public files in the same form, where a copy is at hand.
DATA = os.environ.get("STEERSCOPE_TASK_DATA")


@pytest.mark.skipif(not DATA, reason="STEERSCOPE_TASK_DATA names no folder with the tasks' files")
@pytest.mark.parametrize("name", TASKS)
def test_gold_completions_of_the_published_rows(name):
    task = get_task(name, DATA)
    for part in ALL:
        examples = task.split(part)
        assert [one.completion for one in examples if not is_right(task, one.completion, one)] == []
        for example in examples:
            for index, choice in enumerate(example.choices or ()):
                assert is_right(task, choice, example) == (index == example.answer_index)


def test_files_of_the_earlier_listops_are_named(tmp_path):
    (tmp_path / "listops_bare-test.jsonl.gz").touch()
    with pytest.raises(InputError, match=r"earlier task listops_bare .* Rename it to listops-test\.jsonl\.gz\."):
        get_task("listops", tmp_path).split("test")
