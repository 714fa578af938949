"""What another draw of prompts makes of a verdict: studies/score_draws.py."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steerscope import SiteTable
from studies import score_draws as study
from tests.documents import ROOT, section_of

TABLE = Path(__file__).parents[1] / "studies" / "site_tables" / "small-gpt2-compare_next.json"


def draws_of(gap, noise, count=5):
    """Made draws: nine directions are ``gap`` better than four, on prompts that make both better or worse alike."""
    rng, found = np.random.default_rng(0), []
    for seed in range(count):
        luck = rng.normal(0, 0.2)
        for directions in (4, 9):
            value = 0.4 + luck + (gap if directions == 9 else 0) + rng.normal(0, noise)
            own = dict.fromkeys((*study.STATISTICS, "error_of_rho", "error_of_J"), value)
            found.append({"seed": seed, "directions": directions, "scores": {"mine": own}})
    return found


def test_numbers_of_directions_are_compared_draw_by_draw():
    found = study.spread(draws_of(0.1, 0.01), "mine")
    mean, low, high = found["more_less_few"]["J"]
    assert low < 0.1 < high
    assert low > 0.05, "that draws differ by 0.2 is in both"
    by = found["by_directions"]
    assert by["9"]["J"]["mean"] - by["4"]["J"]["mean"] == pytest.approx(mean)
    values = [one["scores"]["mine"]["J"] for one in draws_of(0.1, 0.01) if one["directions"] == 4]
    assert by["4"]["J"]["sd"] == pytest.approx(np.std(values, ddof=1))
    _, low, high = study.spread(draws_of(0.0, 0.1), "mine")["more_less_few"]["J"]
    assert low < 0 < high
    few = study.spread(draws_of(0.1, 0.01, count=1), "mine")
    assert "more_less_few" not in few
    assert few["by_directions"]["4"]["J"]["sd"] is None


def test_draws_of_a_table_are_judged_kept_and_not_made_again(tmp_path, monkeypatch, capsys):
    table = SiteTable.load(TABLE)
    path, out = tmp_path / "small.json", tmp_path / "found.json"
    replace(table, scores={}, ranking=replace(table.ranking, examples=24)).save(path)
    fixed = ["score_draws", str(path), "--out", str(out), "--draws"]
    monkeypatch.chdir(TABLE.parents[2])  # the table names its model from there
    monkeypatch.setattr(sys, "argv", [*fixed, "1", "--limit", "1"])
    assert study.main() == 0
    (first,) = json.loads(out.read_text())["tables"]["small"]["draws"]
    assert (first["seed"], first["directions"]) == (0, 4)
    monkeypatch.setattr(sys, "argv", [*fixed, "1"])
    assert study.main() == 0
    again, other = json.loads(out.read_text())["tables"]["small"]["draws"]
    assert again == first
    assert (other["seed"], other["directions"]) == (0, 9)
    for one in (first, other):
        for own in one["scores"].values():
            assert own["J"] == pytest.approx((own["rho"] + own["W"]) / 2)
            assert own["error_of_J"] > 0
    assert first["scores"] != other["scores"]
    assert "| small | `predicted_loss` | 9 | 1 |" in capsys.readouterr().out


def test_the_page_says_what_was_kept():
    section = section_of((ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), "How much of a verdict")
    kept = json.loads((ROOT / study.RESULT).read_text(encoding="utf-8"))["tables"]
    rows = [line for line in section.splitlines() if "| `" in line]
    named = (("bundled model", "smollm2-135m-recall"), ("small Gemma-2", "small-gemma2-compare_other"))
    assert len(rows) == len(named) * len(study.SCORES)
    for label, stem in named:
        for score in study.SCORES:
            (row,) = (line for line in rows if line.startswith(f"| {label}") and f"`{score}`" in line)
            own = study.spread(kept[stem]["draws"], score)
            for one in own["by_directions"].values():
                assert f"| {one['J']['mean']:.2f} ± {one['J']['sd']:.2f} ({one['error_of_J']:.2f}) |" in row
            mean, low, high = own["more_less_few"]["J"]
            assert f"| {mean:+.2f} [{low:+.2f}, {high:+.2f}] |" in row
