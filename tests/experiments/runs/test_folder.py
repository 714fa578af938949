"""Folders of runs: complete or not there, never replaced, and strictly read."""

import json
from dataclasses import replace

import pytest

from steerscope import InputError
from steerscope.experiments.training import RunFolder, read_results
from tests.experiments.training.cases import GENERATIONS, config, evaluation, finished, results


def test_a_run_from_beginning_to_end(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "run", config())
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.json"]
    assert not folder.is_finished
    (folder.path / "adapter").mkdir()  # what training keeps besides is its own
    made = results(folder.config)
    folder.finish(made, GENERATIONS)
    assert folder.is_finished
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "adapter", "config.json", "generations.jsonl", "results.json",
    ]  # fmt: skip
    assert read_results(folder.path) == made
    saved = json.loads((folder.path / "results.json").read_text())
    for name in ("test_accuracy", "test_low", "test_high", "n", "majority", "loss", "trainable_parameters", "seed",
                 "tokens_per_second", "peak_memory", "seconds", "versions", "model", "task", "method", "sites",
                 "rank"):  # fmt: skip
        assert name in saved
    assert saved["test_accuracy"] == 0.61
    assert saved["evaluation"]["choice_sum"]["correct"] == 61
    line = json.loads((folder.path / "generations.jsonl").read_text())
    assert line["prompt"] == "p…\n"
    assert made.line == evaluation().line == "test accuracy 61.0% [51.2%, 70.0%] n=100 (majority 12.4%)"


def test_nothing_is_written_over(tmp_path):
    path = finished(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(InputError, match="is not empty; a run is never written over"):
        RunFolder.create(path, config())
    assert RunFolder.reopen(path, config()).is_finished
    with pytest.raises(InputError, match=r"results\.json' is there already"):
        RunFolder(path, config()).finish(results(config()), [])
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write a run"):
        RunFolder.create(tmp_path / "file", config())


def test_two_processes_cannot_both_finish(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", config())
    other = RunFolder.reopen(folder.path, config())
    folder.finish(results(config()), GENERATIONS)
    monkeypatch.setattr(RunFolder, "is_finished", False)  # it looked before the first was done
    with pytest.raises(InputError, match="is there already"):
        other.finish(results(config(), evaluation(5)), [])
    assert read_results(folder.path).correct == 61


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    folder = RunFolder.create(tmp_path / "run", config())
    (folder.path / "generations.jsonl").write_text("half a li")  # cut off between the last two files
    again = RunFolder.reopen(folder.path, config())
    with pytest.raises(InputError, match="with other learning_rate, steps, rank"):
        RunFolder.reopen(folder.path, config(rank=4, settings={"steps": 1}))
    again.finish(results(config()), GENERATIONS)
    assert (folder.path / "generations.jsonl").read_text() == GENERATIONS[0].to_line() + "\n"
    with pytest.raises(InputError, match=r"is no folder of a run that could go on: it has no config.json"):
        RunFolder.reopen(tmp_path, config())


def test_results_must_belong_to_the_run(tmp_path):
    folder = RunFolder.create(tmp_path / "run", config())
    with pytest.raises(InputError, match="a run with other seed"):
        folder.finish(replace(results(config()), seed=1), [])
    for changes in ({"split": "validation"}, {"task": "boolq"}):
        with pytest.raises(InputError, match="is reported on its test part"):
            results(config(), evaluation(**changes))
    with pytest.raises(InputError, match="must be JSON"):
        RunFolder.create(tmp_path / "other", config(settings={"x": float("nan")}))
    with pytest.raises(InputError, match="must be JSON"):
        RunFolder.create(tmp_path / "third", config(settings={"x": object()}))
    assert not list((tmp_path / "third").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_accuracy": None}, "lacks 'test_accuracy'"),
        ({"n": "100"}, "n is '100'; expected a valid integer"),
        ({"n": True}, "n is True; expected a valid integer"),
        ({"sites": "all"}, "sites is 'all'; expected a valid array"),
        ({"sites": [1]}, "sites.0 is 1; expected a valid string"),
        ({"loss": "nan"}, "loss is 'nan'; expected a valid number"),
        ({"test_accuracy": 0.7}, "contradicts itself"),
        ({"correct": 60}, "contradicts itself"),
        ({"n": 0}, "contradicts itself"),
        ({"majority": 1.2}, "contradicts itself"),
        ({"trainable_parameters": -1}, "contradicts itself"),
        ({"seconds": -1.0}, "contradicts itself"),
        ({"tokens_per_second": -1.0}, "contradicts itself"),
        ({"settings": []}, r"settings is \[\]; expected an object"),
        ({"settings": {"data": 5}}, "settings.data is 5; expected a hash per part"),
        ({"settings": {"data": {"test": 5}}}, "settings.data is .*; expected a hash per part"),
        ({"model": {"sha256": 5}}, "model.sha256 is 5; expected a valid string"),
        ({"schema_version": 2}, "has schema_version 2, this steerscope reads 1"),
    ],
)
def test_malformed_results(tmp_path, change, message):
    path = finished(tmp_path / "run")
    saved = json.loads((path / "results.json").read_text()) | change
    saved = {k: v for k, v in saved.items() if v is not None}
    (path / "results.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match=message):
        read_results(path)


@pytest.mark.parametrize(
    "change",
    [{"settings": []}, {"settings": {"data": 5}}, {"settings": None}, {"model": 5}, {"sites": 5}, {"seed": "0"},
     {"versions": []}, {"model": {"sha256": []}}],
)  # fmt: skip
def test_a_run_with_a_damaged_configuration_does_not_go_on(tmp_path, change):
    RunFolder.create(tmp_path, config())
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | change))
    with pytest.raises(InputError, match=r"config.json'.* is .*\. .*(Run again|make it again)"):
        RunFolder.reopen(tmp_path, config())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ("", "cannot be read"),
        ("\xff", "cannot read .*byte 0 is not UTF-8"),
    ],
)
def test_damaged_results(tmp_path, text, message):
    path = finished(tmp_path / "run")
    (path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_results(path)


def test_unknown_fields_of_later_versions_are_ignored(tmp_path):
    path = finished(tmp_path / "run")
    saved = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(saved | {"new": 1}))
    assert read_results(path) == results(config())


def test_what_a_later_version_adds_is_not_ours(tmp_path):
    path = finished(tmp_path / "run")
    for file in ("results.json", "config.json"):
        told = json.loads((path / file).read_text())
        told |= {"model": told["model"] | {"later": 1}} | ({"later": 1} if file == "results.json" else {})
        (path / file).write_text(json.dumps(told))
    assert read_results(path).model == config().model
    assert RunFolder.reopen(path, config()).is_finished
