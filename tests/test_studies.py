"""Studies that wait for a machine: their scripts run here on a tiny model, whole, and go on where they stopped."""

from __future__ import annotations

import json
import sys

import pytest

from studies import gpu_smoke


def smoke(monkeypatch, path, *more):
    fixed = (
        "--device",
        "cpu",
        "--shapes",
        "tiny",
        "--dtypes",
        "bfloat16",
        "--methods",
        "post-block",
        "--examples",
        "24",
    )
    monkeypatch.setattr(sys, "argv", ["gpu_smoke.py", *fixed, "--out", str(path), *more])
    with pytest.raises(SystemExit) as ended:
        gpu_smoke.main()
    return ended.value.code, json.loads(path.read_text())


def test_the_smoke_test_of_a_gpu_runs_and_goes_on(monkeypatch, tmp_path, capsys):
    path = tmp_path / "smoke.json"
    code, none = smoke(monkeypatch, path, "--minutes", "0")
    assert code == 0
    assert none["parts"] == {}
    assert "rank bfloat16" in none["skipped"]
    code, found = smoke(monkeypatch, path, "--minutes", "10")
    assert code == 0, capsys.readouterr().err
    assert found["skipped"] == []
    assert {name.split()[0] for name in found["parts"]} >= {"rank", "edit", "cost", "train", "evaluate", "validate"}
    assert found["parts"]["rank bfloat16"]["worst_share"] > 0  # the two differ, within the tolerance
    assert found["parts"]["cost tiny float32"]["time_ratio"] > 1
    _, again = smoke(monkeypatch, path, "--minutes", "10")
    assert again["parts"] == found["parts"]


def test_a_deviation_beyond_the_tolerance_fails(monkeypatch, tmp_path):
    monkeypatch.setitem(gpu_smoke.SHARES, "bfloat16", 0.0)
    code, found = smoke(monkeypatch, tmp_path / "smoke.json", "--minutes", "0.19")
    assert code == 1
    assert found["parts"]["rank bfloat16"]["failed"] is True
