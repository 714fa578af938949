"""Tasks read from local files: templates, parts that do not overlap, and what a bad file says."""

import gzip
import json
import re

import pytest

from steerscope import InputError
from steerscope.experiments.tasks import get_task


def write(folder, name, rows, packed=True):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = folder / (f"{name}.jsonl.gz" if packed else f"{name}.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def arc_rows(start: int, count: int = 40) -> list[dict]:
    return [
        {"question": f"Which is {start + i}?", "choices": ["one", "two"], "answer_index": i % 2} for i in range(count)
    ]


def boolq_rows(start: int) -> list[dict]:
    return [
        {
            "question": f"is {start + i} odd",
            "passage": f"Numbers of {(start + i) // 4}.",  # four questions each
            "choices": ["False", "True"],
            "answer_index": i % 2,
        }
        for i in range(80)
    ]


def winogrande_rows(start: int) -> list[dict]:
    return [
        {
            "id": f"S{(start + i) // 2}-{i % 2 + 1}",
            "question": f"Ann saw Bob {start + i} times, so _ left.",
            "choices": ["Ann", "Bob"],
            "answer_index": i % 2,
        }
        for i in range(80)
    ]


@pytest.fixture
def folder(tmp_path):
    for part, start in (("train", 0), ("validation", 100), ("test", 200)):
        write(tmp_path, f"arc_easy-{part}", arc_rows(start), packed=part != "test")
    for part, start in (("train", 0), ("validation", 100)):
        write(tmp_path, f"boolq-{part}", boolq_rows(start))
        write(tmp_path, f"winogrande-{part}", winogrande_rows(start))
    return tmp_path


def number_of(prompt: str) -> int:
    return int(re.findall(r"[0-9]+", prompt)[-1])


# How many rows of 80 belong to one passage or one pair of twins.
GROUPS = {"boolq": 4, "boolq_closed": 4, "winogrande": 2}


@pytest.mark.parametrize("name", ["arc_easy", *GROUPS])
def test_parts_do_not_overlap(folder, name):
    task = get_task(name, folder)
    parts = {part: {e.prompt for e in whole(task, part)} for part in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    if name == "arc_easy":
        assert [len(one) for one in parts.values()] == [40, 40, 40]
    else:
        assert len(parts["train"]) + len(parts["validation"]) == len(parts["test"]) == 80
        assert 2 <= len(parts["validation"]) <= 24  # a tenth, by a hash
        # A passage, or a pair of twins, is on one side.
        sides = [{number_of(prompt) // GROUPS[name] for prompt in parts[part]} for part in ("train", "validation")]
        assert not sides[0] & sides[1]
    assert task.split("train", 10, 3) == task.split("train", 20, 3)[:10]
    assert task.split("train", 10, 3) != task.split("train", 10, 4)
    with pytest.raises(InputError, match=f"expected 1 to {len(parts['validation'])}"):
        task.split("validation", 100, 0)


def whole(task, part: str) -> list:
    for n in range(1, 200):
        try:
            found = task.split(part, n, 0)
        except InputError:
            break
    return found


def test_a_question_of_the_test_part_is_not_trained_on(folder):
    again = arc_rows(200, 1)[0] | {"question": "which  IS 200?"}
    write(folder, "arc_easy-train", [*arc_rows(0), again])
    closed = boolq_rows(100)[0] | {"passage": "Another passage."}
    write(folder, "boolq-train", [*boolq_rows(0), closed])
    for name, kept in (("arc_easy", 40), ("boolq_closed", 80), ("boolq", 81)):  # with its passage it is another one
        task = get_task(name, folder)
        parts = ("train",) if name == "arc_easy" else ("train", "validation")
        assert sum(len(whole(task, part)) for part in parts) == kept


def test_templates(folder):
    arc = get_task("arc_easy", folder).split("train", 1, 0)[0]
    assert arc.prompt.startswith("Question: Which is ")
    assert arc.prompt.endswith("?\nAnswer:")
    assert arc.choices == (" one", " two")
    boolq = get_task("boolq", folder).split("train", 1, 0)[0]
    assert re.match(r"Numbers of \d+\.\nQuestion: is ", boolq.prompt)
    assert boolq.choices == (" no", " yes")
    assert "Numbers" not in get_task("boolq_closed", folder).split("train", 1, 0)[0].prompt
    wino = get_task("winogrande", folder).split("train", 1, 0)[0]
    assert wino.prompt.endswith(" times, so")
    assert wino.choices == (" Ann left.", " Bob left.")
    assert wino.completion == wino.choices[wino.answer_index]


def test_answers_are_the_files(folder):
    for example in get_task("boolq", folder).split("test", 40, 0):
        assert example.completion == (" yes" if number_of(example.prompt) % 2 else " no")


def test_bad_files(folder):
    with pytest.raises(InputError, match="give the folder"):
        get_task("arc_easy")
    with pytest.raises(InputError, match=r"needs arc_challenge-test\.jsonl"):
        get_task("arc_challenge", folder).split("train", 1, 0)
    (folder / "arc_easy-train.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"arc_easy-train\.jsonl\.gz"):
        get_task("arc_easy", folder).split("train", 1, 0)
    write(folder, "boolq-train", [{"question": "q"}])
    with pytest.raises(
        InputError, match=r"boolq-train\.jsonl\.gz, line 1 is no row of task 'boolq': field 'passage' is missing"
    ):
        get_task("boolq", folder).split("train", 1, 0)


def test_the_short_form_keeps_short_rows_alone(tmp_path):
    rows = [
        {"question": "q" * length + f" {i}?", "choices": ["one", "t" * longest], "answer_index": i % 2}
        for i, (length, longest) in enumerate([(70, 20), (90, 20), (70, 25), (70, 24)] * 5)
    ]
    for part in ("train", "validation", "test"):
        write(tmp_path, f"arc_easy-{part}", rows if part == "test" else arc_rows(0))
    kept = get_task("arc_easy_short", tmp_path).split("test", 10, 0)
    assert len({e.prompt for e in kept}) == 10
    assert all(e.prompt.count("q") == 70 and max(map(len, e.choices)) <= 25 for e in kept)  # with the leading space
    with pytest.raises(InputError, match="expected 1 to 10"):
        get_task("arc_easy_short", tmp_path).split("test", 11, 0)
    assert len(get_task("arc_easy", tmp_path).split("test", 20, 0)) == 20
