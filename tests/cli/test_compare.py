"""``steerscope compare``: a table, a figure and JSON of finished runs, and what is refused."""

from __future__ import annotations

import json

import pytest

from tests.cli.runs import one_sentence, run
from tests.experiments.training.cases import evaluation, finished


@pytest.fixture
def runs(tmp_path):
    for seed, correct in enumerate((60, 70)):
        finished(tmp_path / "runs" / f"block-{seed}", evaluation(correct), seed=seed)
    finished(tmp_path / "runs" / "base", evaluation(10), 0, method="none", sites=(), rank=None)
    return tmp_path / "runs"


def test_table_figure_and_json(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("compare", runs / "block-0", runs / "block-1", runs / "base", "--out", out) == 0
    printed = capsys.readouterr()
    assert "post-block" in printed.out
    assert "65.0%" in printed.out
    assert "majority 12.4%" in printed.out
    assert str(out / "index.html") in printed.err
    assert sorted(path.name for path in out.iterdir()) == ["comparison.json", "figures", "index.html"]
    saved = json.loads((out / "comparison.json").read_text())
    assert [entry["seeds"] for entry in saved["entries"]] == [[0, 1], [0]]
    assert run("compare", runs, "--out", out) == 2
    assert "is not empty" in one_sentence(capsys.readouterr().err)
    assert run("compare", runs, "--out", out, "--overwrite") == 0


def told(path, **changes) -> None:
    file = path / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "results.json").unlink(), "holds no finished run"),
        (lambda path: (path / "results.json").write_text('{"schema_version": 1}'), "lacks 'task'"),
        (lambda path: (path / "results.json").write_text("{"), "cannot be read"),
        (lambda path: told(path, seconds=-1.0), "contradicts itself"),
        (lambda path: told(path, settings={"data": 5}), "settings.data is 5"),
        (lambda path: told(path, method="lora", sites=["0.resid_post"]), "method 'lora' edits no site"),
    ],
)
def test_refused(runs, tmp_path, capsys, damage, message):
    damage(runs / "base")
    assert run("compare", runs / "block-0", runs / "base", "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in one_sentence(printed.err)
    assert not (tmp_path / "out").exists()


def test_other_questions_and_missing_folders(runs, tmp_path, capsys):
    finished(tmp_path / "boolq", evaluation(task="boolq"), task="boolq")
    assert run("compare", runs, tmp_path / "boolq", "--out", tmp_path / "out") == 2
    assert "answered different questions: task is" in one_sentence(capsys.readouterr().err)
    assert run("compare", tmp_path / "nowhere", "--out", tmp_path / "out") == 2
    assert "there is no folder" in one_sentence(capsys.readouterr().err)
    assert run("compare") == 2  # says what is missing, as typer does
