"""``steerscope train``: refusals before a model is loaded, whole runs, Ctrl-C, and what others make of a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from steerscope.experiments.training import read_results
from tests.cli.runs import one_sentence, run
from tests.experiments.training.tiny_runs import make_place

LINE = re.compile(r"^test accuracy \d+\.\d% \[\d+\.\d%, \d+\.\d%\] n=6 \(majority \d+\.\d%\)$")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("train"))


def arguments(place, *more):
    fixed = ["--task", "listops", "--data-dir", place / "data", "--max-examples", 6, "--max-new-tokens", 24]
    return ["train", place / "model", *fixed, "--steps", 3, "--batch-size", 4, "--quiet", *more]


def train(place, *more):
    return run(*arguments(place, *more))


@pytest.mark.parametrize("method", ["post-block", "lora", "sft"])
def test_a_run_is_evaluated_again_to_the_same_accuracy(place, tmp_path, capsys, method):
    out = tmp_path / "run"
    assert train(place, "--method", method, "--out", out, "--learning-rate", 0.02) == 0
    printed = capsys.readouterr()
    line, _, before = printed.out.strip().partition("; before training ")
    assert LINE.match(line)
    assert printed.out.count("\n") == 1
    found = read_results(out)
    assert found.line == line
    asked = found.before
    assert asked is not None
    assert before == str(asked.accuracy).removesuffix(" n=6")
    assert ("changed weights take up to" in printed.err) == (method == "sft")
    if method == "post-block":
        assert "| Task | listops |" in (out / "adapter" / "README.md").read_text()
    if method == "lora":
        assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            place / "model"
        )
    again = tmp_path / "again"
    fixed = ["--task", "listops", "--data-dir", place / "data", "--max-examples", 6, "--max-new-tokens", 24]
    assert run("evaluate", place / "model", *fixed, "--adapter", out, "--out", again, "--quiet") == 0
    evaluated = read_results(again)
    assert capsys.readouterr().out.splitlines()[-1].startswith(found.line)
    for name in ("test_accuracy", "loss", "test_set", "trainable_parameters"):
        assert getattr(evaluated, name) == getattr(found, name), name
    assert (again / "generations.jsonl").read_text() == (out / "generations.jsonl").read_text()


def test_runs_are_compared(place, tmp_path, capsys):
    for seed in (0, 1):
        assert train(place, "--seed", seed, "--out", tmp_path / "runs" / f"block-{seed}", "--no-likelihoods") == 0
    assert train(place, "--method", "none", "--out", tmp_path / "runs" / "none", "--no-likelihoods") == 0
    said = capsys.readouterr()
    assert "the method's own, not tuned" in said.err
    assert run("compare", tmp_path / "runs", "--out", tmp_path / "comparison") == 0
    table = capsys.readouterr().out
    assert "post-block" in table
    saved = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert {entry["method"]: entry["seeds"] for entry in saved["entries"]} == {"post-block": [0, 1], "none": [0]}


def test_sites_and_settings_are_kept(place, tmp_path):
    more = ["--site", "1.mlp_out,0.hook_resid_post", "--site", "1.resid_post", "--rank", 3, "--positions", "last:2"]
    assert train(place, *more, "--no-bias", "--scale", "rms", "--out", tmp_path / "run", "--no-likelihoods") == 0
    found = read_results(tmp_path / "run")
    assert found.sites == ("0.resid_post", "1.mlp_out", "1.resid_post")
    assert (found.rank, found.trainable_parameters) == (3, 3 * 2 * 3 * 16)
    assert (found.settings["positions"], found.settings["bias"], found.settings["scale"]) == ("last:2", False, "rms")
    assert found.settings["learning_rate"] == 0.001


def test_biases_that_were_added_are_told(place, tmp_path, capsys):
    assert train(place, "--method", "bitfit", "--out", tmp_path / "run", "--no-likelihoods") == 0
    assert "this model has no biases: 14 were added" in capsys.readouterr().err


def test_ctrl_c_leaves_checkpoints_and_the_run_goes_on(place, tmp_path):
    """In a process of its own, with a real signal, until the results equal those of a run that was left alone."""
    more = ["--steps", 40, "--save-every", 2, "--no-likelihoods", "--out"]
    assert train(place, *more, tmp_path / "whole") == 0
    out = tmp_path / "run"
    command = [sys.executable, "-c", "import sys; from steerscope.cli import main; sys.exit(main())"]
    command += [str(one) for one in arguments(place, *more, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A shell's background jobs ignore the signal, and so would what they start.
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes, **listen)
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoints/progress.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=300)
    assert process.returncode == 130, complaints
    assert said == ""
    assert "with --resume goes on" in complaints
    assert "Traceback" not in complaints
    assert not (out / "results.json").exists()
    assert list(out.glob("checkpoints/progress.pt"))
    assert train(place, *more, out) == 2  # not without being told
    assert train(place, *more, out, "--resume") == 0
    assert read_results(out).training["losses"] == read_results(tmp_path / "whole").training["losses"]
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (out / "generations.jsonl").read_text() == (tmp_path / "whole" / "generations.jsonl").read_text()


@pytest.fixture
def unloaded(monkeypatch):
    """Fail the test if anything loads a model."""
    monkeypatch.setattr(
        "steerscope.experiments.training.train.load_model", lambda *a, **k: pytest.fail("the model was loaded")
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "post-blok"], "there is no method 'post-blok'; .* Did you mean 'post-block'"),
        (["--task", "listop"], "Did you mean 'listops'"),
        (["--site", ","], "--site names no site"),
        (["--site", "1.resid_pots"], "unknown site kind 'resid_pots'. Did you mean 'resid_post'"),
        (["--site", "1.pre-mlp"], "is ambiguous"),
        (["--method", "lora", "--site", "1.resid_post"], "'lora' edits no site; leave out --site"),
        (["--method", "lora", "--positions", "last"], "leave out --positions"),
        (["--method", "sft", "--rank", 4], "'sft' has no rank"),
        (["--method", "vector", "--rank", 4], "has no rank; got --rank 4"),
        (["--method", "sft", "--dtype", "bfloat16"], "small updates bfloat16 cannot hold"),
        (["--dtype", "float61"], "Did you mean 'float64'"),
        (["--rank", 0], "--rank is 0; expected at least 1"),
        (["--steps", 0], "--steps is 0"),
        (["--learning-rate", "fast"], "expected a number or 'auto'"),
        (["--learning-rate", 0], "expected a positive number"),
        (["--learning-rate", "nan"], "learning-rate is nan; expected a number"),
        (["--learning-rate", "auto", "--tries", 2], "--tries is 2; expected at least 3"),
        (["--warmup", 1], "--warmup is 1.0"),
        (["--positions", "lst"], "lst"),
        (["--positions", "mask"], "need a mask with every batch"),
        (["--constraint", "input"], "'post-block' has no constraint; use --method joint"),
        (["--method", "joint", "--constraint", "inputs"], "Did you mean 'input'"),
        (["--heads", 3], "'post-block' chooses no heads"),
        (["--method", "loreft", "--no-bias"], "leaves no choice of bias"),
        (["--seed", -1], "--seed is -1"),
        (["--data-dir", "nowhere"], "there is no folder 'nowhere'"),
        (["--train-examples", 999], "asked for 999 train examples"),
    ],
)
def test_refused_before_a_model_is_loaded(place, tmp_path, unloaded, capsys, more, message):
    assert train(place, "--out", tmp_path / "run", *more) == 2
    assert re.search(message, one_sentence(capsys.readouterr().err))
    assert not (tmp_path / "run").exists()


def test_refused_with_the_model(place, tmp_path, capsys):
    assert train(place, "--site", "7.resid_post", "--out", tmp_path / "run") == 2
    assert "names layer 7; this model has layers 0 to 1" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
    assert train(place, "--method", "lofit", "--heads", 9, "--out", tmp_path / "run") == 2
    assert "--heads is 9; there are 8 to choose among" in one_sentence(capsys.readouterr().err)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert train(place, "--out", tmp_path / "full") == 2
    assert "is not empty" in one_sentence(capsys.readouterr().err)


@pytest.mark.real
@pytest.mark.slow
def test_the_bundled_model_learns(tmp_path, capsys):
    more = ["--steps", 6, "--batch-size", 4, "--learning-rate", 0.003, "--max-examples", 8, "--no-likelihoods"]
    assert run("train", "smollm2-135m", "--task", "listops", *more, "--quiet", "--out", tmp_path / "run") == 0
    found = read_results(tmp_path / "run")
    losses = [loss for _, loss in found.training["losses"]]
    assert losses[-1] < losses[0] - 0.1
    assert found.trainable_parameters == 30 * (2 * 8 * 576 + 576)
    assert capsys.readouterr().out.startswith("test accuracy ")
