"""The Python of README.md runs as it stands, on a tiny model in place of the bundled one and less of everything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import steerscope
from steerscope import Evaluation, Ranking, RunResults
from steerscope.analysis.evidence import EVIDENCE
from steerscope.experiments.runs.folder import read_results
from steerscope.models import wrap_model
from tests.byte_models import byte_model, byte_tokenizer

PAGE = Path(__file__).parents[1] / "README.md"
SCREEN = 24
LESS = {
    "n=96": "n=24",
    "steps=60": "steps=2",
    "test_examples=200": "test_examples=4",
    "max_examples=200": "max_examples=4",
}


def test_its_figures_of_scores_are_those_of_the_tables():
    """The paragraph about training names correlations with intervals, and pairs; the page of the tables has them."""
    text = " ".join(PAGE.read_text(encoding="utf-8").partition("**What training says of it**")[2].split())
    text = text.partition("## Command line")[0]
    page = (PAGE.parent / "docs" / "site_tables.md").read_text(encoding="utf-8")
    lines = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    assert len({(one["model"], one["task"]) for one in lines}) == 2  # "two tables may judge scores so far"
    named = re.findall(r"-?0\.\d\d \[-?0\.\d\d, -?0\.\d\d\]", text)
    told = [one for one in lines if one["score"] in ("learnable_share", "predicted_loss")]
    assert len(set(named)) == len(told) == 4
    for one in told:
        rows = [f"`{one['score']}` | {own} |" for own in named if own.startswith(f"{one['spearman']:.2f} ")]
        assert any(row in page for row in rows)
        assert f"{one['pairs']:.0%}" in text
        assert f"{one['attainable']:.2f} is attainable" in text
        assert one["n_sites"] == 98


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """The page's blocks of Python, and how to run one: with the model's parameters before and after."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    loaded = wrap_model(byte_model(num_hidden_layers=30), byte_tokenizer(), name="smollm2-135m")
    asked = []
    monkeypatch.setattr(steerscope, "load_model", lambda name: asked.append(name) or loaded)
    monkeypatch.chdir(tmp_path)
    before = [parameter.detach().clone() for parameter in loaded.model.parameters()]

    def run(text: str) -> dict[str, object]:
        names: dict[str, object] = {}
        exec(compile(text, str(PAGE), "exec"), names)
        assert asked == ["smollm2-135m"]
        assert all(value.equal(other) for value, other in zip(before, loaded.model.parameters(), strict=True))
        return names

    return code, run


def test_the_main_example_ranks_trains_there_and_tests(blocks, tmp_path, capsys):
    (code, _), run = blocks
    assert len(code.splitlines()) <= SCREEN
    for much, little in LESS.items():
        assert code.count(much) == 1
        code = code.replace(much, little)
    names = run(code)
    ranking = names["ranking"]
    assert isinstance(ranking, Ranking)
    assert isinstance(names["plot_heat_map"](ranking), Figure)
    assert (tmp_path / "ranking.png").stat().st_size > 5000
    trained = read_results(tmp_path / "run")
    assert isinstance(trained, RunResults)
    assert trained.sites == (ranking.best().name,) == names["sites"]
    assert (trained.method, trained.rank, trained.n) == ("post-block", 8, 4)
    said = capsys.readouterr().out.splitlines()
    assert any(trained.line in line for line in said)
    assert said[-1].startswith("test accuracy ")
    with_adapter = names["evaluate"](names["loaded"], names["task"], names["asked"], adapter="run")
    assert isinstance(with_adapter, Evaluation)
    assert with_adapter.correct == trained.correct


def test_the_second_example_reads_edits_and_keeps_an_adapter(blocks, tmp_path, capsys):
    (_, code), run = blocks
    names = run(code)
    assert {path.name for path in (tmp_path / "my-adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert "trainable params: 272 ||" in capsys.readouterr().out  # 2 * 16 * 8 + 16
    assert [str(site) for site in names["seen"]] == ["29.resid_post"]
