"""Tasks read from local files: templates, parts that do not overlap, and what a bad file says."""

import gzip
import json

import pytest

from steerscope import InputError
from steerscope.experiments.tasks import get_task


def write(folder, name, rows, packed=True):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = folder / (f"{name}.jsonl.gz" if packed else f"{name}.jsonl")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    for part, start in (("train", 0), ("validation", 100), ("test", 200)):
        rows = [
            {"question": f"Which is {start + i}?", "choices": ["one", "two"], "answer_index": i % 2} for i in range(40)
        ]
        write(tmp_path, f"arc_easy-{part}", rows, packed=part != "test")
    for part, start in (("train", 0), ("validation", 100)):
        rows = [
            {
                "question": f"is {start + i} odd",
                "passage": "Numbers.",
                "choices": ["False", "True"],
                "answer_index": i % 2,
            }
            for i in range(40)
        ]
        write(tmp_path, f"boolq-{part}", rows)
        rows = [
            {"question": f"Ann saw Bob {start + i} times, so _ left.", "choices": ["Ann", "Bob"], "answer_index": i % 2}
            for i in range(40)
        ]
        write(tmp_path, f"winogrande-{part}", rows)
    return tmp_path


@pytest.mark.parametrize("name", ["arc_easy", "boolq", "boolq_closed", "winogrande"])
def test_parts_do_not_overlap(folder, name):
    task = get_task(name, folder)
    sizes = (
        {"train": 40, "validation": 40, "test": 40}
        if name == "arc_easy"
        else {"train": 36, "validation": 4, "test": 40}
    )
    parts = [{e.prompt for e in task.split(part, n, 0)} for part, n in sizes.items()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == sum(sizes.values())
    assert task.split("train", 10, 3) == task.split("train", 20, 3)[:10]
    assert task.split("train", 10, 3) != task.split("train", 10, 4)
    with pytest.raises(InputError, match=f"expected 1 to {sizes['validation']}"):
        task.split("validation", 100, 0)


def test_templates(folder):
    arc = get_task("arc_easy", folder).split("train", 1, 0)[0]
    assert arc.prompt.startswith("Question: Which is ")
    assert arc.prompt.endswith("?\nAnswer:")
    assert arc.choices == (" one", " two")
    boolq = get_task("boolq", folder).split("train", 1, 0)[0]
    assert boolq.prompt.startswith("Numbers.\nQuestion: is ")
    assert boolq.choices == (" no", " yes")
    assert "Numbers." not in get_task("boolq_closed", folder).split("train", 1, 0)[0].prompt
    wino = get_task("winogrande", folder).split("train", 1, 0)[0]
    assert wino.prompt.endswith(" times, so")
    assert wino.choices == (" Ann left.", " Bob left.")
    assert wino.completion == wino.choices[wino.answer_index]


def test_answers_are_the_files(folder):
    for example in get_task("boolq", folder).split("test", 40, 0):
        number = int(example.prompt.split("is ")[1].split()[0])
        assert example.completion == (" yes" if number % 2 else " no")


def test_bad_files(folder):
    with pytest.raises(InputError, match="give the folder"):
        get_task("arc_easy")
    with pytest.raises(InputError, match=r"needs arc_challenge-train\.jsonl"):
        get_task("arc_challenge", folder).split("train", 1, 0)
    (folder / "arc_easy-train.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"cannot read arc_easy-train.jsonl.gz"):
        get_task("arc_easy", folder).split("train", 1, 0)
    write(folder, "boolq-train", [{"question": "q"}])
    with pytest.raises(InputError, match=r"boolq-train.jsonl.gz, line 1 lacks a field"):
        get_task("boolq", folder).split("train", 1, 0)


def test_the_short_form_keeps_short_rows_alone(tmp_path):
    rows = [
        {"question": "q" * length + f" {i}?", "choices": ["one", "t" * longest], "answer_index": i % 2}
        for i, (length, longest) in enumerate([(70, 20), (90, 20), (70, 25), (70, 24)] * 5)
    ]
    for part in ("train", "validation", "test"):
        write(tmp_path, f"arc_easy-{part}", rows)
    kept = get_task("arc_easy_short", tmp_path).split("test", 10, 0)
    assert len({e.prompt for e in kept}) == 10
    assert all(e.prompt.count("q") == 70 and max(map(len, e.choices)) <= 25 for e in kept)  # with the leading space
    with pytest.raises(InputError, match="expected 1 to 10"):
        get_task("arc_easy_short", tmp_path).split("test", 11, 0)
    assert len(get_task("arc_easy", tmp_path).split("test", 20, 0)) == 20
