"""Studies that wait for a machine: their scripts run here on a tiny model, whole, and go on where they stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steerscope import InputError, get_task, load_model
from steerscope.experiments.runs.folder import read_results
from steerscope.experiments.site_tables import SiteTable
from steerscope.experiments.tasks.formats import GENERATED
from steerscope.models.tokens import completion_tokens
from studies import gpu_smoke
from studies.small_models import FAMILIES, train_small
from tests.byte_models import byte_model, byte_tokenizer

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_model_is_trained_saved_small_and_loaded_in_full(tmp_path, family):
    known = train_small(
        family, tmp_path / "small", tasks=("recall_all", "flat"), steps=2, layers=2, width=16, dtype="float16"
    )
    assert set(known) == {"recall_all", "flat"}
    assert all(0 <= share <= 1 for share in known.values())
    weights = load_file(tmp_path / "small" / "model.safetensors")
    assert {one.dtype for one in weights.values() if one.is_floating_point()} == {torch.float16}
    loaded = load_model(tmp_path / "small")
    assert {one.dtype for one in loaded.model.parameters()} == {torch.float32}
    assert len(loaded.site_map.blocks) == 2
    for name in GENERATED:
        for one in get_task(name).split("test", 5):
            before, after = completion_tokens(one.prompt, one.completion, loaded.tokenizer)
            assert len(after) == 1 or name.endswith("_paper")
            assert loaded.tokenizer.unk_token_id not in (*before, *after) or name.endswith("_paper")


def test_small_models_learn_and_repeat(tmp_path):
    easy = {"tasks": ("compare",), "steps": 120, "batch_size": 32, "rate": 3e-3, "layers": 2, "width": 32}
    first, again = (train_small("gpt2", tmp_path / name, **easy) for name in ("first", "again"))
    assert first == again
    assert first["compare"] > 0.3  # a constant is right for 10%, the better of two for 20%


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("mamba", ("flat",)), "there is no small model of 'mamba'; expected one of gpt_neox, gemma2, gpt2, llama."),
        (("gpt2", ("boolq",)), "task 'boolq' is not generated; expected one of flat, recall_all, "),
    ],
)
def test_small_models_refuse(tmp_path, given, message):
    with pytest.raises(InputError) as caught:
        train_small(given[0], tmp_path / "small", tasks=given[1])
    assert str(caught.value).startswith(message)


def test_the_gpu_sweep_runs_on_a_cpu_with_a_small_model(tmp_path):
    """Every task gets its table, and a second call has nothing left to train."""
    model = tmp_path / "model"
    byte_model(max_position_embeddings=128).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    settings = {"DEVICE": "cpu", "DTYPE": "float32", "MODEL": str(model), "SITES": "7", "STEPS": "4", "BATCH": "4"}
    settings |= {"SEEDS": "1", "LONGER": "1", "TEST": "16", "SELECTION": "16", "TASKS": "listops compare", "JOBS": "1"}
    environment = {**os.environ, **settings, "PYTHON": sys.executable}
    command = [str(ROOT / "studies" / "gpu_sweep.sh"), "3", str(tmp_path / "out")]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for task in ("listops", "compare"):
        table = SiteTable.load(tmp_path / "out" / task / "table.json")
        assert len(table.outcomes()) == 7
        assert len(table.longer()) == 1


def test_the_runs_of_the_claims_go_on_within_their_minutes(tmp_path):
    """Without time nothing begins; with it every configuration is trained once, and some for longer."""
    model = tmp_path / "model"
    byte_model(max_position_embeddings=128).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    settings = {"DEVICE": "cpu", "MODEL": str(model), "TASKS": "twice", "ONLY": "post-block", "LONGER": "post-block"}
    settings |= {"STEPS": "2", "BATCH": "4", "SEEDS": "1", "TRIES": "3", "TEST": "8", "JOBS": "1"}
    environment = {**os.environ, **settings, "PYTHON": sys.executable}

    def call(minutes: int) -> dict[str, int]:
        command = [str(ROOT / "studies" / "gpu_claims.sh"), str(minutes), str(tmp_path / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = sorted((tmp_path / "out").glob("*/*/results.json"))
        return {place.parent.parent.name: place.stat().st_mtime_ns for place in found}

    assert call(0) == {}
    first = call(3)
    assert set(first) == {"twice", "twice-longer"}
    assert call(3) == first
    steps = [read_results(tmp_path / "out" / name / "post-block-0").settings["steps"] for name in sorted(first)]
    assert steps == [2, 4]
