"""The example of docs/steering.md runs, on a tiny model in place of the bundled one."""

from __future__ import annotations

import re
from pathlib import Path

import steerscope
from steerscope.models import wrap_model
from tests.byte_models import byte_model, byte_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "steering.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    code, vectors = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    tokenizer = byte_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    loaded = wrap_model(byte_model(num_hidden_layers=21), tokenizer, name="smollm2-135m")
    monkeypatch.setattr(steerscope, "load_model", lambda name: loaded, raising=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
    assert "trainable params: 544 ||" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "my-adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    exec(compile(vectors, str(PAGE), "exec"), {})
    said = capsys.readouterr().out
    assert "mean of 3 positives and 3 negatives" in said
    assert "14.resid_post: length" in said
    assert (tmp_path / "positive.gguf").is_file()


def test_the_page_names_every_family_and_rule():
    from steerscope.steering import FAMILIES
    from steerscope.steering.positions import WORDS

    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert set(FAMILIES) <= named
    assert set(WORDS) <= named
    for name, found in FAMILIES.items():  # each equation stands in its family's row, up to conditions in brackets
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert found.equation.split(",")[0].split(" (per")[0] in row
