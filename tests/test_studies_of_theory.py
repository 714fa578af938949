"""The studies of reach and of first-order steps run on a tiny model, whole, and go on where they stopped."""

from __future__ import annotations

import json
import sys

import pytest

from studies import first_order_steps, reach
from studies.theory import ROOT, STEPS
from tests.cli.runs import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("study") / "model")


def test_first_order_steps(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "steps.json"
    fixed = [str(folder), "--out", str(out), "--most", "2", "--rows", "2", "--batch-size", "4", "--rates", "1e-4"]
    monkeypatch.setattr(sys, "argv", ["first_order_steps.py", *fixed, "--seeds", "0"])
    first_order_steps.main()
    one = json.loads(out.read_text())["runs"]
    assert one["rate 0.0001, seed 0"]["steps_within"] == 2
    assert min(one["rate 0.0001, seed 0"]["explained"]) > 0.9
    monkeypatch.setattr(sys, "argv", ["first_order_steps.py", *fixed, "--seeds", "0", "1"])
    capsys.readouterr()
    first_order_steps.main()
    assert "seed 0" not in capsys.readouterr().out
    assert json.loads(out.read_text())["runs"].keys() == {"rate 0.0001, seed 0", "rate 0.0001, seed 1"}


def test_the_readme_says_what_the_study_found():
    one = json.loads((ROOT / STEPS).read_text(encoding="utf-8"))["runs"]["rate 5e-05, seed 0"]
    first, second = (f"{part:.0%}" for part in one["explained"][:2])
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"explains {first} of the shift of the logits after the first step and {second} after the second" in text
    assert one["steps_within"] == 1


def test_reach(folder, tmp_path, monkeypatch):
    out, lines = tmp_path / "reach.json", tmp_path / "rows.jsonl"
    rows = ({"passage": f"{i} {i % 7} [MAX {i % 5} {i % 9} ] {i % 4} 5 {i % 3} = {i % 8}"} for i in range(90))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["reach.py", str(folder), "--out", str(out), "--text", str(lines), "--layers", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    reach.main()
    found = json.loads(out.read_text())["layers"]["1"]
    assert set(found) == {"English", "rows.jsonl", "listops"}
    for data in (found["rows.jsonl"], found["listops"]):
        for reads in ("h'", "y", "[I', y]"):
            assert 0 <= data[reads]["here"] <= 1
            assert data[reads]["other texts"] > 0.9 * data[reads]["here"]
        assert data["[I', y]"]["here"] <= min(data["h'"]["here"], data["y"]["here"])
