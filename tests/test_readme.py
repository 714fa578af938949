"""The Python of README.md runs as it stands, on a tiny model in place of the bundled one."""

from __future__ import annotations

import re
from pathlib import Path

import steerscope
from steerscope.models import wrap_model
from tests.byte_models import byte_model, byte_tokenizer

PAGE = Path(__file__).parents[1] / "README.md"


def test_its_examples_run_one_after_another(tmp_path, monkeypatch, capsys):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 2
    loaded = wrap_model(byte_model(num_hidden_layers=30), byte_tokenizer(), name="smollm2-135m")
    asked = []
    monkeypatch.setattr(steerscope, "load_model", lambda name: asked.append(name) or loaded)
    monkeypatch.chdir(tmp_path)
    before = [parameter.detach().clone() for parameter in loaded.model.parameters()]
    names: dict[str, object] = {}
    for part in code:
        exec(compile(part, str(PAGE), "exec"), names)
    assert asked == ["smollm2-135m"]
    assert (tmp_path / "report-small" / "index.html").is_file()
    assert {path.name for path in (tmp_path / "my-adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert "trainable params: 272 ||" in capsys.readouterr().out  # 2 * 16 * 8 + 16
    assert [str(site) for site in names["seen"]] == ["29.resid_post"]
    after = list(loaded.model.parameters())
    assert all(value.equal(other) for value, other in zip(before, after, strict=True))
