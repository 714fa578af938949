"""What every command has: results as JSON, help with an example, completion, names in any spelling."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
import typer

from steerscope import EvaluateOptions, InputError, RankOptions, SearchOptions, SteeringConfig, TrainOptions, load_model
from steerscope.cli import app
from steerscope.experiments.training.methods import get_method
from tests.byte_models import byte_model, byte_tokenizer
from tests.cli.runs import one_sentence, run
from tests.cli.test_rank import environment

COMMANDS = typer.main.get_command(app).commands


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    byte_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder


def printed(capsys, *arguments) -> dict:
    """Run a command with ``--json -`` and return what stands on stdout, which is nothing but JSON."""
    assert run(*arguments, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)


def test_results_as_json(place, tmp_path, capsys):
    model, less = place / "model", ("--max-examples", 4, "--no-likelihoods", "--quiet")
    sites = printed(capsys, "sites", model)
    assert {row["site"] for row in sites["sites"]} >= {"0.resid_pre", "1.resid_post"}
    assert all(row["channels"] in (16, 20) and row["equation"] for row in sites["sites"])
    assert [row["site"] for row in printed(capsys, "sites", model, "1.mlp_out")["sites"]] == ["1.mlp_out"]
    found = printed(capsys, "evaluate", model, "--task", "compare", *less)
    assert (found["n"], found["task"]) == (4, "compare")
    trained = printed(
        capsys, "train", model, "--task", "compare", "--steps", 1, "--batch-size", 2, "--method", "Post_Block",
        "--site", "1.mlp_out", "--out", tmp_path / "run", *less,
    )  # fmt: skip
    assert (trained["method"], trained["sites"], trained["n"]) == ("post-block", ["1.mlp_out"], 4)
    assert trained == json.loads((tmp_path / "run" / "results.json").read_text())
    compared = printed(capsys, "compare", tmp_path / "run", "--out", tmp_path / "comparison")
    assert compared == json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    target = tmp_path / "sites.json"
    assert run("sites", model, "--json", target) == 0
    assert json.loads(target.read_text()) == sites
    capsys.readouterr()
    assert run("sites", model, "--json", place / "model" / "config.json") == 2
    assert "config.json" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_ends_with_an_example(command, option, capsys):
    assert run(*[word for word in (command, option) if word]) == 0
    said = " ".join(re.sub(r"[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
    assert "Example: steerscope " + command in said or not command
    panels = {one.rich_help_panel for one in COMMANDS[command].params} if command else set()
    assert all(panel in said for panel in panels if panel)
    if command:
        assert {one.rich_help_panel is None for one in COMMANDS[command].params if one.opts[0].startswith("--")} == {
            False
        }, "an option without a panel"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("steerscope tra", {"train"}),
        ("steerscope train --meth", {"--method"}),
        ("steerscope train --method lo", {"loreft", "lofit", "lora"}),
        ("steerscope rank --kinds mlp_out,resid_p", {"mlp_out,resid_pre", "mlp_out,resid_post"}),
    ],
)
def test_the_shell_completes(words, wanted):
    given = {"_STEERSCOPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    found = subprocess.run(
        [sys.executable, "-m", "steerscope"], env=environment() | given, capture_output=True, text=True, check=False
    )
    assert set(found.stdout.split()) == wanted, found.stderr


def test_names_in_any_spelling():
    options = TrainOptions(method="LoRA", dtype="BF16", start="Published")
    assert (options.method, options.dtype, options.start) == ("lora", "bfloat16", "published")
    assert get_method("Post_Block") is get_method("post-block") is get_method("linear")
    assert RankOptions(score="Predicted_Loss", extra=("Step",)) == RankOptions(score="predicted_loss", extra=("step",))
    assert EvaluateOptions(split="TEST", dtype="torch.float32") == EvaluateOptions()
    assert SearchOptions(family="Linear", scale="RMS").config_at("1.mlp_out").scale == "rms"
    assert SteeringConfig("resid_post", family="LoReFT", dtype=torch.float64).dtype == "float64"
    with pytest.raises(InputError, match="there is no method 'lroa'"):
        TrainOptions(method="lroa").check()


def test_devices_and_data_types(place):
    loaded = load_model(place / "model", device="auto", dtype="fp64")
    assert loaded.identity.dtype == "float64"
    assert loaded.device.type == ("cuda" if torch.cuda.is_available() else loaded.device.type)
    with pytest.raises(InputError, match=r"unknown dtype 'int8'.*or fp32"):
        load_model(place / "model", dtype="int8")
