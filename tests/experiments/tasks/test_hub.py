"""Rows through the ``datasets`` package, which need not be there: folders with the fields of the hub's sets."""

import json
import sys
import types

import pytest

from steerscope import InputError
from steerscope.experiments.tasks import get_task

ARC = {"question": "q{i}?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
ROWS = {
    ("google/boolq", None): {"question": "q{i}", "passage": "p{i}", "answer": True},
    ("allenai/winogrande", "winogrande_debiased"): {
        "sentence": "s{i} _",
        "option1": "a{i}",
        "option2": "b",
        "answer": "2",
    },
    ("allenai/ai2_arc", "ARC-Easy"): ARC,
    ("allenai/ai2_arc", "ARC-Challenge"): ARC,
    ("openai/gsm8k", "main"): {"question": "q{i}", "answer": "step\n#### 1,234"},
    ("deepmind/aqua_rat", "raw"): {
        "question": "q{i}",
        "options": ["A)1", "B)2", "C)3", "D)4", "E)None"],
        "rationale": "so",
        "correct": "E",
    },
}
GOLD = {
    "boolq": " yes",
    "boolq_closed": " yes",
    "boolq_paper": "Answer: True.",
    "winogrande": " B",
    "winogrande_paper": "Answer: Option2.",
    "arc_easy": " C",
    "arc_easy_short": " C",
    "arc_easy_paper": "Answer: (C) z.",
    "arc_challenge": " C",
    "arc_challenge_paper": "Answer: (C) z.",
    "gsm8k": "step\nAnswer: 1234",
    "aqua": " E",
    "aqua_paper": "so\nAnswer: E.",
}


def filled(value, i):
    return value.replace("{i}", str(i)) if isinstance(value, str) else value


def rows_of(path, config, split):
    start = {"train": 0, "validation": 50, "test": 100}[split]
    return [{k: filled(v, start + i) for k, v in ROWS[path, config].items()} for i in range(40)]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The hub's data sets as folders, with the layout of a repository: a card that names configurations, and files."""
    root = tmp_path_factory.mktemp("hub")
    for path in {path for path, _ in ROWS}:
        card = ["---", "configs:"]
        for config in [config for other, config in ROWS if other == path]:
            folder = root / path / (config or "data")
            folder.mkdir(parents=True)
            card += [f"- config_name: {config or 'default'}", "  data_files:"]
            for split in ("train", "validation", "test"):
                lines = "".join(json.dumps(row) + "\n" for row in rows_of(path, config, split))
                (folder / f"{split}.jsonl").write_text(lines)
                card += [f"  - split: {split}", f"    path: {folder.name}/{split}.jsonl"]
        (root / path / "README.md").write_text("\n".join([*card, "---", ""]))
    return root


@pytest.fixture
def hub(monkeypatch, mirror):
    """The package ``datasets`` itself, which finds the hub's data sets on disk; what was asked of it."""
    datasets = pytest.importorskip("datasets")
    asked, real = [], datasets.load_dataset

    def load_dataset(path, config, split):
        asked.append((path, config, split))
        return real(str(mirror / path), config, split=split, cache_dir=str(mirror / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("name", list(GOLD))
def test_fields_of_the_hub(hub, name):
    task = get_task(name)
    (example,) = task.split("test", 1)
    assert example.completion == GOLD[name]
    assert task.form.parse(example.completion, example) == example.answer
    wanted = "validation" if name.startswith(("boolq", "winogrande")) else "test"
    assert [split for _, _, split in hub] == [wanted]
    assert task.split("train")
    assert task.split("validation")
    if name.startswith("aqua"):
        assert example.options == ("1", "2", "3", "4", "None")


def test_datasets_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install .steerscope\[data\]"):
        get_task("boolq")
    assert get_task("listops").split("test", 3)  # needs nothing
    with pytest.raises(InputError, match="'listops_gen' is read from files"):
        get_task("listops_gen")


def test_offline(monkeypatch):
    module = types.ModuleType("datasets")

    def load_dataset(path, config, split):
        raise ConnectionError("no route to host")

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(InputError, match=r"test part of 'openai/gsm8k'.*no route to host.*as data_dir"):
        get_task("gsm8k").split("test")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gsm8k", {"answer": "step"}),
        ("aqua", {"correct": "F"}),
        ("arc_easy", {"answerKey": "9"}),
        ("boolq", {"answer": "yes"}),
        ("winogrande", {"answer": ""}),
    ],
)
def test_other_fields_than_expected(hub, monkeypatch, name, change):
    monkeypatch.setattr(
        sys.modules["datasets"],
        "load_dataset",
        lambda path, config, split: [{k: filled(v, 0) for k, v in ROWS[path, config].items()} | change],
    )
    with pytest.raises(InputError, match=r"row 0 has not the fields|expected an integer|is no row"):
        get_task(name).split("test")
