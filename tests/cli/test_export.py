"""``steerscope export``: the files of the Python functions, and refusals in one sentence."""

from __future__ import annotations

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file

from steerscope.models import load_model
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from tests.cli.runs import one_sentence, run, save_model
from tests.steering.cases import randomise


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model's folder, and two adapters for it: one that is a LoRA, one that is a control vector."""
    root = tmp_path_factory.mktemp("export")
    loaded = load_model(str(save_model(root / "model")))
    for name, config in (
        ("linear", SteeringConfig("1.mlp_out", rank=2, bias=False)),
        ("vector", SteeringConfig("1.resid_post", "vector")),
        ("biased", SteeringConfig("1.mlp_out", rank=2)),
    ):
        steering = randomise(get_steering_model(loaded, config))
        steering.save_pretrained(root / name / "adapter")  # as a run's folder has it
        steering.unload()
    return root


def test_a_lora(saved, tmp_path, capsys):
    assert run("export", saved / "linear", "--to", "lora", "--out", tmp_path / "lora", "--strength", "2") == 0
    assert "LoRA: " in capsys.readouterr().err
    steering = SteeringModel.from_pretrained(load_model(str(saved / "model")), saved / "linear" / "adapter")
    steering.set_strength(2)
    steering.export_lora(tmp_path / "same")
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "same"))
    assert found.keys() == expected.keys()
    assert all(bool((found[name] == expected[name]).all()) for name in expected)


def test_a_control_vector(saved, tmp_path):
    out = tmp_path / "vector.gguf"
    assert run("export", saved / "vector" / "adapter", "--to", "GGUF", "--out", out, "--model", saved / "model") == 0
    assert [tensor.name for tensor in GGUFReader(out).tensors] == ["direction.1"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vector", ("--to", "gguff", "--out", "x"), "Did you mean 'gguf'"),
        ("vector", ("--to", "lora", "--out", "x"), "or pass --lora-bias: then PEFT runs the file"),
        ("biased", ("--to", "lora", "--out", "x"), "or pass --lora-bias"),
        ("linear", ("--to", "gguf", "--out", "x.gguf"), "depends on what it reads"),
        ("linear", ("--to", "lora", "--out", "x", "--strength", "nan"), "a strength is a finite number"),
        ("nothing", ("--to", "lora", "--out", "x"), "there is no adapter in"),
        ("vector", ("--to", "gguf", "--out", "x.txt"), "name it, 'vector.gguf' for example"),
        ("model", ("--to", "lora", "--out", "x"), "holds the weights of a whole model"),
    ],
)
def test_what_cannot_be_exported_is_refused(saved, tmp_path, monkeypatch, capsys, name, options, message):
    monkeypatch.chdir(tmp_path)
    assert run("export", saved / name, *options) == 2
    assert message in one_sentence(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
