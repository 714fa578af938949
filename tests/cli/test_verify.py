"""``steerscope verify``: exit codes, what it prints and writes, and what it refuses before any work."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from steerscope.equivalence.propositions import catalogue
from steerscope.experiments.verification import run as runner
from tests.cli.runs import one_sentence, run, save_model
from tests.experiments.verification.cases import EVERY, FINE, SMALL


@pytest.fixture
def tiny(monkeypatch):
    """Put the tests' own few propositions in the catalogue's place."""

    def chosen(propositions):
        def by_name(names):
            found = {one.name: one for one in propositions}
            return propositions if names is None else [found[name] for name in names]

        monkeypatch.setattr(catalogue, "all_propositions", lambda: propositions)
        monkeypatch.setattr(catalogue, "propositions", by_name)

    return chosen


@pytest.fixture
def no_work(monkeypatch):
    """Fail if anything is loaded or tried."""

    def refuse(*args, **kwargs):
        raise AssertionError("work was begun before the input was refused")

    monkeypatch.setattr("steerscope.models.load_model", refuse)
    monkeypatch.setattr(runner, "random_subjects", refuse)


def test_all_hold(tiny, capsys):
    tiny(FINE)
    assert run("verify", "--quiet") == 0
    out = capsys.readouterr().out
    assert out.replace("\n", " ").startswith(
        "3 propositions on random blocks (llama, gpt2, gemma2): holds 1, holds with correction 1, not applicable 1. "
    )
    assert "P3   statement 3" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_failure_is_exit_code_one(tiny, capsys, tmp_path):
    tiny(EVERY)
    assert run("verify", "--quiet", "--out", tmp_path / "report") == 1
    assert "Fails: P7, P13." in capsys.readouterr().out
    assert (tmp_path / "report" / "index.html").exists()
    assert run("verify", "--quiet", "--only", "P1, P3") == 0


def test_json_alone_on_stdout(tiny, capsys):
    tiny(FINE)
    assert run("verify", "--quiet", "--json", "-", "--seed", "3") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["seed"] == 3
    assert [one["name"] for one in data["propositions"]] == ["P1", "P3", "P12"]
    assert data["settings"]["command"].split()[0] == "steerscope"


def test_progress_goes_to_stderr(tiny, capsys):
    tiny(FINE)
    assert run("verify") == 0
    assert "trying propositions, done" in capsys.readouterr().err


def test_on_a_model(tiny, capsys, tmp_path, monkeypatch):
    tiny(FINE)
    # Smaller defaults: what the command does not set is what takes the time.
    kind = runner.VerifyOptions
    small = tuple(getattr(SMALL, field.name) for field in fields(kind))
    monkeypatch.setattr(kind.__init__, "__defaults__", small)
    model = save_model(tmp_path / "model")
    assert run("verify", model, "--json", tmp_path / "verify.json", "--quiet") == 0
    data = json.loads((tmp_path / "verify.json").read_text(encoding="utf-8"))
    assert data["measurements"]["slopes"]
    capsys.readouterr()
    assert run("verify", model, "--quick", "--json", "-", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["measurements"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "P99"], "P99"),
        (["--only", ","], "--only"),
        (["--seed", "-1"], "seed"),
        (["--json", "nowhere/verify.json"], "--json"),
    ],
)
def test_bad_input_is_refused_before_work(arguments, words, no_work, capsys):
    assert run("verify", "--quiet", *arguments) == 2
    assert words in one_sentence(capsys.readouterr().err)


def test_folder_in_use_is_refused_before_work(no_work, capsys, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert run("verify", "--out", tmp_path) == 2
    assert "not empty" in one_sentence(capsys.readouterr().err)
    assert run("verify", "--out", tmp_path / "mine.txt") == 2
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_unknown_model(tiny, capsys, tmp_path):
    tiny(FINE)
    assert run("verify", tmp_path / "nothing", "--quiet") == 2
    assert "no model folder" in one_sentence(capsys.readouterr().err)


def test_interruption(tiny, capsys, monkeypatch, tmp_path):
    tiny(FINE)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "try_propositions", stop)
    assert run("verify", "--out", tmp_path / "report", "--quiet") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
