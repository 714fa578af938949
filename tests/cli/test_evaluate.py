"""``steerscope evaluate``: refusals before a model is loaded, and whole runs on tiny models with adapters."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model

from steerscope.experiments.training import read_results
from steerscope.models import load_model
from steerscope.steering import SteeringConfig, get_steering_model
from tests.byte_models import byte_model, byte_tokenizer
from tests.cli.runs import one_sentence, run
from tests.experiments.tasks.rows import row, write_rows, write_task

LINE = re.compile(r"^test accuracy \d+\.\d% \[\d+\.\d%, \d+\.\d%\] n=6 \(majority \d+\.\d%\)(; .* by likelihood.*)?$")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, an adapter of each kind for the first, and data."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name, options in {"model": {"seed": 0}, "other": {"seed": 1}, "deep": {"num_hidden_layers": 3}}.items():
        byte_model(**options).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    data = folder / "data"
    data.mkdir()
    for task in ("listops", "boolq", "gsm8k"):
        write_task(data, task)
    torch.manual_seed(0)
    steered = get_steering_model(load_model(folder / "model"), SteeringConfig("resid_post", rank=2, seed=3))
    with torch.no_grad():
        for parameter in steered.edits.parameters():
            parameter.normal_()
    steered.save_pretrained(folder / "steering")
    for name in ("model", "deep"):
        lora = get_peft_model(load_model(folder / name).model, LoraConfig(r=2, target_modules=["q_proj"]))
        with torch.no_grad():
            for parameter in lora.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
        lora.save_pretrained(folder / f"lora-{name}")
    return folder


def evaluate(place, *arguments):
    fixed = ["--task", "listops", "--data-dir", place / "data", "--max-examples", 6, "--max-new-tokens", 4]
    return run("evaluate", place / "model", *fixed, *arguments, "--quiet")


def test_a_run_and_its_folder(place, tmp_path, capsys):
    out = tmp_path / "run"
    assert evaluate(place, "--out", out) == 0
    said = capsys.readouterr().out
    assert LINE.match(said.splitlines()[-1])
    assert "by likelihood of the choices" in said
    assert "an answer could be read in" in said
    assert "ended before" not in said  # an answer is one byte, without an end
    found = read_results(out)
    assert said.splitlines()[-1].startswith(found.line)
    assert (found.method, found.trainable_parameters, found.sites, found.n) == ("none", 0, (), 6)
    assert found.loss > 0
    assert found.model.name.endswith("model")
    assert found.versions["torch"].startswith("2.")
    assert found.peak_memory > 2**20
    lines = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(re.fullmatch(r"\[SM \d \d \]=", line["prompt"]) and len(line["choice_tokens"]) == 10 for line in lines)
    before = (out / "results.json").read_bytes()
    assert evaluate(place, "--out", out) == 2
    assert "is not empty" in one_sentence(capsys.readouterr().err)
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize("adapter", ["steering", "lora-model"])
def test_an_adapter_changes_what_is_written(place, tmp_path, capsys, adapter):
    assert evaluate(place, "--out", tmp_path / "plain") == 0
    assert evaluate(place, "--out", tmp_path / "one", "--adapter", place / adapter, "--batch-size", 1) == 0
    assert evaluate(place, "--out", tmp_path / "many", "--adapter", place / adapter, "--batch-size", 16) == 0
    texts = {
        name: [json.loads(line)["text"] for line in (tmp_path / name / "generations.jsonl").read_text().splitlines()]
        for name in ("plain", "one", "many")
    }
    assert texts["one"] == texts["many"]
    assert texts["one"] != texts["plain"]
    found = read_results(tmp_path / "many")
    if adapter == "steering":
        # Two layers of 16 channels, rank 2: down, up and a bias.
        assert (found.method, found.rank, found.seed) == ("steering linear", 2, 3)
        assert found.trainable_parameters == 2 * (2 * 16 * 2 + 16)
        assert found.sites == ("resid_post",)
    else:
        assert (found.method, found.rank, found.trainable_parameters) == ("lora", 2, 2 * 2 * (16 + 16))
    assert read_results(tmp_path / "plain").test_set == found.test_set


def test_other_parts_are_not_reported_as_test(place, tmp_path, capsys):
    out = tmp_path / "validation"
    assert evaluate(place, "--split", "validation", "--out", out) == 0
    assert "validation accuracy " in capsys.readouterr().out.splitlines()[-1]
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "generations.jsonl"]


@pytest.fixture
def unloaded(monkeypatch):
    """Fail the test if anything loads a model."""
    monkeypatch.setattr("steerscope.models.load_model", lambda *a, **k: pytest.fail("the model was loaded"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "listop"], "there is no task 'listop'; expected one of .* Did you mean 'listops'"),
        (["--task", "boolq_close"], "Did you mean 'boolq_closed'"),
        (["--data-dir", "nowhere"], "there is no folder 'nowhere'"),
        (["--task", "aqua"], r"needs aqua-test.jsonl or aqua-test.jsonl.gz in"),
        (["--split", "tests"], "Did you mean 'test'"),
        (["--max-examples", 0], "--max-examples is 0; expected at least 1"),
        (["--batch-size", 0], "--batch-size is 0"),
        (["--max-new-tokens", -1], "--max-new-tokens is -1"),
        (["--adapter", "nowhere"], "there is no adapter folder 'nowhere'"),
    ],
)
def test_refused_before_a_model_is_loaded(place, unloaded, capsys, arguments, message):
    assert evaluate(place, *arguments) == 2
    assert re.search(message, one_sentence(capsys.readouterr().err))


def test_a_malformed_row_is_named_by_its_line(place, unloaded, tmp_path, capsys):
    write_rows(tmp_path, "listops-test", [row("listops", 1), {"question": "[SM 1 2 ]", "answer_index": 3}, "{"])
    assert evaluate(place, "--data-dir", tmp_path) == 2
    assert "listops-test.jsonl.gz, line 3 is not valid JSON" in one_sentence(capsys.readouterr().err)


def damaged(source, target, name, change):
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    path = target / name
    change(path)
    return target


@pytest.mark.parametrize(
    ("adapter", "name", "change", "message"),
    [
        ("lora-model", "adapter_config.json", lambda p: p.unlink(), "holds no adapter: adapter_config.json is missing"),
        ("lora-model", "adapter_config.json", lambda p: p.write_text("{"), "cannot be read"),
        ("lora-model", "adapter_config.json", lambda p: p.write_text("[]"), "holds a list; expected a JSON object"),
        ("lora-model", "adapter_config.json", lambda p: p.write_text("{}"), "is not a steering adapter"),
        ("lora-model", "adapter_model.safetensors", lambda p: p.unlink(), "has no adapter_model.safetensors"),
        (
            "steering",
            "adapter_model.safetensors",
            lambda p: p.write_bytes(p.read_bytes()[:-9]),
            "is no whole safetensors file",
        ),
        ("steering", "adapter_config.json", lambda p: p.write_text(p.read_text().replace('"rank": 2', '"rank": 0')),
         "rank must be a whole number"),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_refused_before_a_model_is_loaded(
    place, unloaded, tmp_path, capsys, adapter, name, change, message
):
    folder = damaged(place / adapter, tmp_path / "adapter", name, change)
    assert evaluate(place, "--adapter", folder) == 2
    assert message in one_sentence(capsys.readouterr().err)


def test_an_adapter_of_another_model(place, tmp_path, capsys):
    fixed = ["--data-dir", place / "data", "--max-examples", 2, "--max-new-tokens", 2, "--quiet"]
    out = tmp_path / "out"
    assert run("evaluate", place / "other", *fixed, "--adapter", place / "steering", "--out", out) == 2
    assert "this adapter was trained for" in one_sentence(capsys.readouterr().err)
    for model, adapter in (("model", "lora-deep"), ("deep", "lora-model")):
        assert run("evaluate", place / model, *fixed, "--adapter", place / adapter, "--out", out) == 2
        assert "is not of model" in one_sentence(capsys.readouterr().err)
    assert not out.exists()
