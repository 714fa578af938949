"""``steerscope validate``: refusals before any work, and the command as a user runs it on a tiny model."""

import json

import pytest

from steerscope.cli import main
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    digits = [f" {d}" for d in range(10)]
    rows = [
        {"prompt": f"[ SM {a} {b} {c} ] =", "choices": digits, "answer_index": (a + b + c) % 10}
        for a in range(7)
        for b in range(7)
        for c in range(7)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SMALL = ["--sites", "6", "--seeds", "2", "--steps", "3", "--batch-size", "4", "--max-examples", "24"]
SMALL += ["--test-examples", "32", "--rank", "2", "--no-references", "--quiet"]


def test_the_command(folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["validate", str(folder), "--data", str(data), "--out", str(out), *SMALL]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "6 sites trained, 2 seeds, 3 steps of 4" in " ".join(printed.out.split())
    assert "Scores against trained loss" in printed.out
    assert "Attainable with this training noise" in printed.out
    result = json.loads((out / "validation.json").read_text())
    assert result["task"] == "sums.jsonl"
    assert len(result["sites"]) == 6
    assert (out / "index.html").exists()
    assert (out / "figures/predicted_against_trained.png").exists()
    # A second call would overwrite; it is refused, and --resume goes on (here: has nothing left to do).
    assert main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    again = json.loads((out / "validation.json").read_text())
    assert again["agreements"] == result["agreements"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sites", "3"], "--sites asks for 3; expected at least 6"),
        (["--sites", "1.mlp_out,2.pre-mlp"], "ambiguous"),
        (["--steps", "0"], "steps is 0; expected at least 1"),
        (["--seeds", "0"], "seeds is 0; expected at least 1"),
        (["--dtype", "bfloat16"], "float32 or float64"),
        (["--task", "listop"], "there is no task 'listop'"),
        (["--task", "listops_gen"], "give the folder that holds them"),
        (["--task", "boolq", "--data-dir", "nowhere"], "there is no folder 'nowhere'"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_refused_before_a_model_is_loaded(arguments, message, capsys, monkeypatch, tmp_path):
    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("steerscope.models.load_model", never)
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "some-model", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "validation").exists()


def test_too_small_a_file(folder, data, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:60]))
    assert main(["validate", str(folder), "--data", str(few), "--out", str(tmp_path / "o"), *SMALL]) == 2
    said = capsys.readouterr().err
    assert "few.jsonl has 60 different examples, too few for a validation" in said
    assert "to validation, where 16 are needed" in said
    assert "Give at least 174 different prompts" in said
