"""The list of runs behind the page of claims: complete, alike but for what a claim is about, and resumable."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from steerscope.errors import InputError
from steerscope.experiments.training.methods import METHODS
from studies.claims.page import write_claims
from studies.claims.study import CONFIGURATIONS, commands, main
from tests.experiments.training.tiny_runs import make_place


def test_every_method_and_seed_has_its_run():
    runs = commands("m", "t", Path("runs"), list(CONFIGURATIONS), 3, ["--steps", "9"])
    used = [arguments[arguments.index("--method") + 1] for arguments in runs.values()]
    assert set(used) == set(METHODS)
    assert len(runs) == 3 * len(CONFIGURATIONS) - 2  # nothing is trained by "none", so it has no seeds
    for place, arguments in runs.items():
        assert arguments[arguments.index("--out") + 1] == str(place)
        assert ("--learning-rate" in arguments) == (place.name != "none-0")
        assert arguments[-1] == "--resume"
        assert arguments.index("--steps") < arguments.index("--method")  # what makes a configuration has the last word
    assert all(one != other for one, other in combinations(map(tuple, runs.values()), 2))


def test_with_one_search_other_seeds_take_over_the_first_ones_rate():
    runs = commands("m", "t", Path("runs"), ["none", "lora"], 3, [], search_once=True)
    taken = {p.name: a[a.index("--learning-rate-of") + 1] for p, a in runs.items() if "--learning-rate-of" in a}
    first = str(Path("runs", "lora-0"))
    assert taken == {"lora-1": first, "lora-2": first}
    assert list(runs).index(Path("runs", "lora-0")) < list(runs).index(Path("runs", "lora-1"))


def test_bad_input_is_refused_before_anything_runs(capsys):
    with pytest.raises(InputError, match="Did you mean 'post-block'"):
        commands("m", "t", Path("runs"), ["post-blok"], 3, [])
    assert main(["m", "--out", "runs", "--seeds", "0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err


def test_runs_of_a_study_decide_claims_and_are_not_run_again(tmp_path, capfd):
    place = make_place(tmp_path)
    small = {"steps": 3, "batch-size": 4, "max-examples": 6, "validation-examples": 6, "max-new-tokens": 8, "tries": 3}
    own = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    told = [str(place / "model"), "--data-dir", str(place / "data"), "--out", str(tmp_path / "runs"), "--seeds", "1"]
    study = [*told, "--only", "post-block,post-mlp", "--", *own, "--quiet"]
    assert main(study) == 0
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/results.json")}
    assert len(results) == 2
    assert main(study) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in results.items())
    # Without time nothing begins, and what is left is said.
    capfd.readouterr()
    assert main([*told, "--only", "post-block,vector", "--minutes", "0", "--no-leftover", "--", *own, "--quiet"]) == 0
    assert capfd.readouterr().err == "claims: 1 of 2 runs are left; the same command goes on.\n"
    assert not (tmp_path / "runs" / "vector-0").exists()
    write_claims([tmp_path / "runs"], tmp_path / "claims.md")
    assert "| post-block r8 >= post-mlp r8 |" in (tmp_path / "claims.md").read_text()
    # A run that cannot be is named, and does not stop the others.
    capfd.readouterr()
    assert main([*told, "--only", "post-block-r32", "--", *own, "--dtype", "float8"]) == 1
    assert "post-block-r32-0 failed" in capfd.readouterr().err
