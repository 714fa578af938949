"""Processes that share a sweep: nothing is done twice, nothing finished is lost, the table is that of one process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from steerscope.errors import InputError
from steerscope.experiments.site_tables import SiteTable
from tests.experiments.carrying.sharing import OPTIONS, numbers, packs, swept, tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def loaded():
    return tiny()


@pytest.fixture(scope="module")
def alone(loaded, tmp_path_factory) -> SiteTable:
    return swept(tmp_path_factory.mktemp("alone") / "sweep", loaded=loaded)


def test_one_is_killed_and_one_meets_a_full_disk(alone, tmp_path):
    """The others take their work over, at once where they see that a process of their machine is gone."""
    folder, log = tmp_path / "sweep", tmp_path / "log"
    command = [sys.executable, "-m", "tests.experiments.carrying.sharing", folder, log]
    command += ["1/4:3:0,2/4:0:1000", "3/4:0:0,4/4:0:0"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    codes, said = json.loads(done.stdout.splitlines()[-1])
    assert codes == [-9, 2, 0, 0], said
    assert "cannot write" in said[1]
    assert "Raise the limit on the size of files" in said[1]
    table = SiteTable.load(folder / "table.json")
    assert len(table.runs) == 24
    assert numbers(table) == numbers(alone)
    # The full disk struck after a training, whose result could not be kept.
    twice = [pack for pack, count in Counter(packs(log)).items() if count > 1]
    assert len(twice) <= 1
    assert len(set(packs(log))) == len(packs(log)) - len(twice)
    assert {path.read_text().split()[0] for path in (folder / "claims").glob("train-*")} == {"held", "done"}
    assert not list(folder.rglob(".unfinished*"))


def test_a_process_that_comes_late_finds_all_done(alone, loaded, tmp_path, monkeypatch):
    first = swept(tmp_path / "sweep", dataclasses.replace(OPTIONS, shard="2/2"), loaded)
    monkeypatch.setattr("steerscope.experiments.engine.sweep.train_pack", None)  # called, it would fail
    again = swept(tmp_path / "sweep", dataclasses.replace(OPTIONS, shard="1/2"), loaded)
    assert numbers(again) == numbers(first) == numbers(alone)


def test_rates_that_depend_on_each_other_are_searched_in_the_same_order(loaded, tmp_path):
    options = dataclasses.replace(OPTIONS, rates=(), longer=0, seeds=1)
    expected = swept(tmp_path / "alone", options, loaded)
    shared = swept(tmp_path / "shared", dataclasses.replace(options, shard="3/3"), loaded)
    assert numbers(shared) == numbers(expected)


def test_another_size_of_packs_is_refused(loaded, tmp_path):
    options = dataclasses.replace(OPTIONS, shard="1/2", seeds=1, longer=0, sites=("2.mlp_out",), rates=(1e-2,))
    swept(tmp_path / "sweep", options, loaded)
    with pytest.raises(InputError, match=r"pack_size is 3, and the work in .* was begun with 2"):
        swept(tmp_path / "sweep", dataclasses.replace(options, pack_size=3), loaded)
    swept(tmp_path / "sweep", dataclasses.replace(options, pack_size=None), loaded)
