"""One run, one set of data: what decides a result is in what resume, compare, searches and stores look at."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from steerscope.analysis.data.examples import Example
from steerscope.analysis.provenance import content_hash, differing, model_key
from steerscope.errors import InputError
from steerscope.experiments.comparison import compare
from steerscope.experiments.training import read_results
from steerscope.experiments.training.train import train
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.validate import validate_ranking
from steerscope.models import load_model
from steerscope.reports.comparison.tables import comparison_table
from tests.cli.runs import run as command
from tests.cli.runs import save_model
from tests.experiments.tasks.rows import row, write_rows
from tests.experiments.training.tiny_runs import make_place, options, task_of
from tests.splits import splits_of_examples


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def other(place, tmp_path_factory) -> Path:
    """The same model and test rows, other training rows, files of the same names."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "data").mkdir()
    for file in (place / "data").iterdir():
        shutil.copy(file, folder / "data")
    write_rows(folder / "data", "listops-train", [row("listops", i) for i in range(100, 160)])
    return folder


def interrupted(folder: Path) -> Path:
    """Make a finished run one that was cut off before its test."""
    (folder / "results.json").unlink()
    return folder


def changed(file: Path, change) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def as_of_before(folder: Path) -> Path:
    """Take out of a run's files what earlier versions did not write."""
    for name in ("config.json", "results.json"):
        if (folder / name).exists():
            changed(folder / name, lambda v: [v["settings"].pop(one) for one in ("data", "recipe")])
            changed(folder / name, lambda v: v["model"].pop("setup"))
    changed(folder / "config.json", lambda v: v.pop("versions"))
    return folder


# --- resume --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["under way", "finished"])
def test_a_run_does_not_go_on_with_other_rows(place, other, tmp_path, state):
    train(options(place), task_of(place), tmp_path / "run")
    if state == "under way":
        interrupted(tmp_path / "run")
    with pytest.raises(InputError, match=r"was begun with other training data\. Give the same options and data"):
        train(options(place), task_of(other), tmp_path / "run", resume=True)
    assert train(options(place), task_of(place), tmp_path / "run", resume=True).n == 6


def test_a_run_does_not_go_on_with_another_model_of_the_same_name(place, tmp_path):
    model = shutil.copytree(place / "model", tmp_path / "model")
    chosen = options(place, model=str(model))
    train(chosen, task_of(place), tmp_path / "run")
    interrupted(tmp_path / "run")
    changed(model / "config.json", lambda values: values.update(rms_norm_eps=0.1))
    with pytest.raises(InputError, match="was begun with other model"):
        train(chosen, task_of(place), tmp_path / "run", resume=True)
    moved = options(place, model=str(place / "model"))  # elsewhere, and the same
    assert train(moved, task_of(place), tmp_path / "run", resume=True).n == 6


def test_other_versions_are_told_and_not_refused(place, tmp_path):
    train(options(place), task_of(place), tmp_path / "run")
    interrupted(tmp_path / "run")
    changed(tmp_path / "run" / "config.json", lambda values: values["versions"].update(torch="1.0"))
    said: list[str] = []
    train(options(place), task_of(place), tmp_path / "run", resume=True, say=said.append)
    assert any("was begun with other versions (torch 1.0 to" in sentence for sentence in said)


def test_options_that_differ_are_named_as_they_are_given(place, tmp_path, capsys):
    train(options(place), task_of(place), tmp_path / "run")
    with pytest.raises(InputError, match=r"other eval_batch_size, seed\. Give"):
        train(options(place, seed=1, eval_batch_size=2), task_of(place), tmp_path / "run", resume=True)
    arguments = ["train", place / "model", "--data-dir", place / "data", "--rank", 2, "--steps", 4, "--batch-size", 4]
    arguments += ["--max-examples", 5, "--max-new-tokens", 24, "--no-likelihoods", "--learning-rate", 0.01, "--quiet"]
    assert command(*arguments, "--out", tmp_path / "run", "--resume") == 2
    assert "was begun with other --max-examples, test data. Give" in capsys.readouterr().err


def test_a_run_of_an_earlier_version(place, tmp_path):
    """What is done is read, with a word; what is not does not go on with data that may be other."""
    train(options(place), task_of(place), tmp_path / "run")
    before = read_results(as_of_before(tmp_path / "run"))
    said: list[str] = []
    assert train(options(place), task_of(place), tmp_path / "run", resume=True, say=said.append) == before
    assert [sentence for sentence in said if "does not say which data it used" in sentence]
    interrupted(tmp_path / "run")
    with pytest.raises(InputError, match="does not say on which data it was begun"):
        train(options(place), task_of(place), tmp_path / "run", resume=True)


# --- compare and searches ------------------------------------------------------------------------------------


def test_runs_on_other_data_are_other_rows(place, other, tmp_path):
    train(options(place), task_of(place), tmp_path / "runs" / "0")
    train(options(place, seed=1), task_of(other), tmp_path / "runs" / "1")
    train(options(place, seed=2), task_of(place), tmp_path / "runs" / "2")
    train(options(place, "none", learning_rate=None), task_of(place), tmp_path / "runs" / "none")
    found = compare([tmp_path / "runs"])
    assert sorted(entry.seeds for entry in found.entries) == [(0,), (0, 2), (1,)]
    assert found.data_note == ""
    names = [row[0] for row in comparison_table(found).rows]
    assert sorted(name.split(" data ")[0] for name in names) == ["none", "post-block", "post-block"]
    assert len(set(names)) == 3
    # What an earlier version wrote is a row of its own, which says what is not known of it.
    as_of_before(tmp_path / "runs" / "0")
    found = compare([tmp_path / "runs"])
    assert len(found.entries) == 4
    assert "post-block unknown data" in [row[0] for row in comparison_table(found).rows]
    assert "do not say on which data" in comparison_table(found).note


def test_a_comparison_asks_the_same_choices(place, tmp_path):
    """The test set's older hash has prompts and answers alone."""
    train(options(place), task_of(place), tmp_path / "0")
    train(options(place, seed=1), task_of(place), tmp_path / "1")
    for name in ("config.json", "results.json"):
        changed(tmp_path / "1" / name, lambda values: values["settings"]["data"].update(test="0" * 16))
    with pytest.raises(InputError, match="answered different questions: the test data"):
        compare([tmp_path / "0", tmp_path / "1"])


def test_a_search_is_taken_over_on_the_same_data_alone(place, other, tmp_path):
    searching = options(place, learning_rate="auto", tries=3)
    train(searching, task_of(place), tmp_path / "0")
    taking = replace(searching, seed=1, learning_rate_of=str(tmp_path / "0"))
    with pytest.raises(InputError, match="with other training data; only the seed may differ"):
        train(taking, task_of(other), tmp_path / "1")
    train(taking, task_of(place), tmp_path / "1")
    as_of_before(tmp_path / "0")
    with pytest.raises(InputError, match="does not say on which data it searched"):
        train(taking, task_of(place), tmp_path / "2")


def test_an_evaluation_names_the_weights_of_its_adapter(place, tmp_path):
    train(options(place), task_of(place), tmp_path / "run")
    fixed = ["--data-dir", place / "data", "--max-examples", 6, "--max-new-tokens", 8, "--quiet"]
    for name in ("a", "b"):
        assert (
            command("evaluate", place / "model", *fixed, "--adapter", tmp_path / "run", "--out", tmp_path / name) == 0
        )
        train(options(place, learning_rate=0.05), task_of(place), tmp_path / f"other-{name}")
        shutil.rmtree(tmp_path / "run" / "adapter")
        shutil.copytree(tmp_path / f"other-{name}" / "adapter", tmp_path / "run" / "adapter")
    settings = [read_results(tmp_path / name).settings for name in ("a", "b")]
    assert settings[0]["adapter_sha256"] != settings[1]["adapter_sha256"]
    assert (
        settings[0]["data"] == settings[1]["data"] == {"test": read_results(tmp_path / "run").settings["data"]["test"]}
    )
    assert len(compare([tmp_path / "a", tmp_path / "b"]).entries) == 2


# --- rankings and validations --------------------------------------------------------------------------------


def sums(shift: int) -> list[Example]:
    digits = tuple(f" {d}" for d in range(10))
    cells = [(a, b, c) for a in range(6) for b in range(6) for c in range(6)]
    return [
        Example(f"[ SM {a} {b} {c} ] =", digits[(a + b + c + shift) % 10], digits, (a + b + c + shift) % 10)
        for a, b, c in cells
    ]


def test_a_validation_does_not_go_on_with_other_rows(tmp_path):
    """The file's name is the same and its answers are not."""
    loaded = load_model(save_model(tmp_path / "model"))
    chosen = ValidateOptions(sites=6, seeds=1, rank=2, steps=1, batch_size=4, num_ranking=24, num_selection=16,
                             num_test=16, references=False)  # fmt: skip
    out = tmp_path / "out"
    ranking, found = validate_ranking(loaded, splits_of_examples("sums.jsonl", sums(0)), chosen, out)
    assert set(found.data) == {"ranking", "train", "selection", "test"}
    before = {path.name: path.read_bytes() for path in out.rglob("*.json")}
    with pytest.raises(InputError, match=r"was begun with other data\. Give the same options and data"):
        validate_ranking(loaded, splits_of_examples("sums.jsonl", sums(1)), chosen, out)
    with pytest.raises(InputError, match=r"was begun with other rank\. Give"):
        validate_ranking(loaded, splits_of_examples("sums.jsonl", sums(0)), replace(chosen, rank=3), out)
    again, _ = validate_ranking(loaded, splits_of_examples("renamed.jsonl", sums(0)), chosen, out)
    assert again.sites == ranking.sites
    assert {path.name: path.read_bytes() for path in out.rglob("*.json")} == before
    # The ranking of an earlier version says nothing of its data: it is made again, to the same numbers.
    changed(out / "ranking.json", lambda values: values["settings"].pop("asked_data"))
    again, _ = validate_ranking(loaded, splits_of_examples("sums.jsonl", sums(0)), chosen, out)
    assert again.sites == ranking.sites


def test_a_store_knows_models_by_all_that_decides(tmp_path):
    first = load_model(save_model(tmp_path / "model"))
    changed(tmp_path / "model" / "tokenizer_config.json", lambda values: values.update(padding_side="left"))
    second = load_model(tmp_path / "model")
    assert first.identity.sha256 == second.identity.sha256
    assert model_key(first.identity) != model_key(second.identity)
    (tmp_path / "model" / "README.md").write_text("says nothing about outputs")
    assert model_key(load_model(tmp_path / "model").identity) == model_key(second.identity)


# --- hashes --------------------------------------------------------------------------------------------------


def test_content_is_what_is_asked_and_answered():
    base = [Example("a", "b", ("b", "c"), 0), Example("d", "c", ("b", "c"), 1)]
    same = content_hash(base, ordered=False)
    assert content_hash(base[::-1], ordered=False) == same
    assert content_hash(base[::-1], ordered=True) != content_hash(base, ordered=True)
    other = [
        Example("A", "b", ("b", "c"), 0),
        Example("a", "b", ("b", "C"), 0),
        Example("a", "c", ("b", "c"), 1),
        Example("a", "b"),
        Example("a", "bb"),
    ]
    assert len({content_hash([one, base[1]], ordered=False) for one in other} | {same}) == 6
    assert content_hash([*base, base[0]], ordered=False) != same


def test_differences_in_words():
    one = {"seed": 0, "sites": ("a",), "settings": {"steps": 1, "data": {"train": "x"}}, "model": {"name": "here"}}
    other = {"seed": 0, "sites": ["a"], "settings": {"steps": 2, "data": {"train": "y"}}, "model": {"name": "there"}}
    assert differing(one, other) == ["[[steps]]", "model", "training data"]
    assert differing(one, json.loads(json.dumps(one))) == []
