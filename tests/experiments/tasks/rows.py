"""Small files of every task, written for the tests: the fields of the real ones, questions of our own."""

from __future__ import annotations

import gzip
import json
import string
from pathlib import Path

from steerscope.experiments.tasks import task_names
from steerscope.experiments.tasks.formats import FORMATS

TASKS = tuple(task_names())
OFFICIAL = {"boolq": ("train", "validation"), "winogrande": ("train", "validation"), "gsm8k": ("train", "test")}
ALL = ("train", "validation", "test")


def row(task: str, i: int) -> dict:
    if task.startswith("listops"):
        a, b = i // 10, i % 10
        return {
            "question": f"[SM {a} {b} ]",
            "choices": [str(d) for d in range(10)],
            "answer_index": (a + b) % 10,
            "source_index": i,
        }
    if task == "recall":
        return {"question": f"a={i // 10} b={i % 10} b", "answer_index": i % 10}
    if task.startswith("compare"):
        return {"question": f"max({i // 10},{i % 10})", "answer_index": max(i // 10, i % 10)}
    if task == "twice":
        once, two = string.ascii_lowercase[i // 25], string.ascii_lowercase[(i // 25 + 1 + i % 25) % 26]
        return {"question": f"{two} {once} {two}", "answer_index": string.ascii_lowercase.index(two)}
    if task == "boolq":
        return {
            "passage": f"Number {i // 2} came. True or false stories were told.",
            "question": f"did {i} come",
            "choices": ["False", "True"],
            "answer_index": int(i % 3 > 0),
        }
    if task == "winogrande":
        return {
            "id": f"S{i // 2}-{i % 2 + 1}",
            "question": f"Ann gave Bob {i} pears because _ was {'kind' if i % 2 else 'hungry'}.",
            "choices": ["Ann", "Bob"],
            "answer_index": 1 - i % 2,
        }
    if task.startswith("arc"):
        labels = ["1", "2", "3"] if i % 4 == 0 else list("ABCD")
        texts = [f"a bee with {i} legs", "all of the above", "dog", "Everything."][: len(labels)]
        index = i % len(labels)
        return {
            "question": f"Which one has {i} legs?",
            "choices": texts,
            "choice_labels": labels,
            "answer_index": index,
            "answer_label": labels[index],
        }
    if task == "gsm8k":
        value = [f"{7 * i + 1}", f"-{i + 1}", f"{i}.5", f"{1000 * (i + 2)}"][i % 4]
        return {
            "question": f"Ann has {i} boxes. How many pens is that?",
            "solution": f"First {i} * 3 = <<{i}*3={3 * i}>>{3 * i}.\nThe answer is near 5.",
            "answer": value,
        }
    return {
        "question": f"What is {i} + 1?",
        "choices": [str(i), str(i + 1), "None", "2" if i > 9 else "77", f"{i}/3"],
        "choice_labels": list("ABCDE"),
        "answer_index": 1,
        "rationale": f"Add one to {i}.\nAnswer: D would be too small.\nthe answer is A bit more.",
    }


def write_rows(folder: Path, name: str, rows: list[dict | str], *, packed: bool = True) -> Path:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    path = folder / f"{name}.jsonl{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def write_task(folder: Path, task: str, sizes: tuple[int, int, int] = (60, 12, 16)) -> None:
    """Write the files of a task, which may be those of others too (``boolq_paper`` reads ``boolq``)."""
    task, start = FORMATS[task][1], 0
    for part, size in zip(ALL, sizes, strict=True):
        if part in OFFICIAL.get(task, ALL):
            write_rows(folder, f"{task}-{part}", [row(task, start + i) for i in range(size)])
        start += size
