"""Two places at the same layers, from kept site tables: studies/paired_places.py."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from steerscope.experiments.site_tables import SiteTable
from studies import paired_places as study

ROOT = Path(__file__).parents[1] / "studies" / "site_tables"


def losses(gaps, noise=0.01, seeds=5, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for layer, gap in enumerate(gaps):
        batch = rng.normal(0, 0.3, seeds)  # what both places have in common
        found[layer, "a"] = 1 + batch + rng.normal(0, noise, seeds)
        found[layer, "b"] = 1 - gap + batch + rng.normal(0, noise, seeds)
    return found


def test_every_layer_is_compared_seed_by_seed():
    found = study.paired(losses([0.1, 0.2, -0.1, 0.0]), "a", "b")
    assert [one.layer for one in found.layers] == [0, 1, 2, 3]
    assert [one.difference for one in found.layers] == pytest.approx([0.1, 0.2, -0.1, 0.0], abs=0.02)
    assert all(one.difference == pytest.approx(one.first - one.second) for one in found.layers)
    assert all(0.002 < one.error < 0.012 for one in found.layers)  # that of single losses is 0.13
    back = study.paired(losses([0.1, 0.2, -0.1, 0.0]), "b", "a")
    assert back.p == found.p
    assert [one.difference for one in back.layers] == pytest.approx([-one.difference for one in found.layers])


def test_the_test_is_exact_and_flips_whole_layers(monkeypatch):
    means = np.array([0.3, 0.1, -0.05, 0.2])
    flips = [
        abs(sum(s * m for s, m in zip(signs, means, strict=True))) for signs in itertools.product((1, -1), repeat=4)
    ]
    assert study.sign_flip(means) == pytest.approx(np.mean(np.array(flips) >= abs(means.sum()) - 1e-12))
    assert study.sign_flip(np.full(10, 0.1)) == pytest.approx(2 / 2**10)
    many = np.random.default_rng(1).normal(0.2, 1, 16)
    exact = study.sign_flip(many)
    monkeypatch.setattr(study, "EXACT_LAYERS", 4)
    assert study.sign_flip(many) == pytest.approx(exact, abs=0.01)


def test_without_a_difference_it_is_found_as_often_as_it_should_be():
    rng = np.random.default_rng(0)
    found = [study.paired(losses(rng.normal(0, 0.05, 12), seed=trial), "a", "b").p < 0.05 for trial in range(200)]
    assert 2 <= sum(found) <= 20


def test_neighbours_that_are_alike_are_seen():
    assert study.paired(losses([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), "a", "b").neighbours > 0.9
    few = study.paired(losses([0.1, 0.2, 0.1, 0.1, 0.2], noise=0.0), "a", "b")
    assert few.p == pytest.approx(2 / 2**5)
    assert few.p_threes == 0.5  # two groups of layers, of which both have the same sign
    assert study.paired(losses([0.1, 0.2, 0.1]), "a", "b").neighbours is None
    assert study.paired(losses([0.1]), "a", "b") is None


def test_layers_where_nothing_was_learned_are_left_out_on_request():
    table = SiteTable.load(ROOT / "small-gpt2-compare_next.json")
    every, learned = study.losses_of(table), study.losses_of(table, learned=True)
    layers = {layer for layer, _ in every}
    kept = {layer for layer, _ in learned}
    for layer in layers:
        best = min(one.mean() for (own, _), one in every.items() if own == layer)
        assert (layer in kept) == (best < table.base.recalibrated_loss)


def test_kept_tables_are_read_and_the_result_is_plain_json(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    kept = [str(ROOT / "small-gpt2-compare_next.json"), str(ROOT / "smollm2-135m-recall.json")]
    monkeypatch.setattr(sys, "argv", ["paired_places", *kept, "--json", str(out)])
    assert study.main() == 0
    told = capsys.readouterr().out
    assert "`mlp_out` - `resid_post` by layer: 0: " in told
    found = json.loads(out.read_text())
    first = found["small-gpt2-compare_next"][0]["all"]
    assert first["compared"]["num_layers"] == len(first["layers"]) == 14
    assert first["seeds"] == 3
    assert first["compared"]["difference"]["value"] == pytest.approx(
        np.mean([one["difference"] for one in first["layers"]]), abs=1e-5
    )
    monkeypatch.setattr(sys, "argv", ["paired_places", *kept, "--pairs", "mlp_out"])
    assert study.main() == 2
    assert "expected two kinds" in capsys.readouterr().err
