"""``search`` and ``sweep`` print JSON and write a page beside their results, or say what it needs."""

from __future__ import annotations

import json
import sys

import pytest

from steerscope import SearchResult, SiteTable
from tests.cli.runs import run
from tests.cli.test_validate import data, folder
from tests.reports.pages import assert_sound

__all__ = ["data", "folder"]  # fixtures

SIZES = ["--steps", "10", "--batch-size", "4", "--selection-examples", "16", "--test-examples", "16", "--rank", "2"]
COMMANDS = {
    "search": (["--candidates", "2", "--max-examples", "24", "--no-sets", "--no-references", *SIZES],
               "search.json", SearchResult, "test examples right"),
    "sweep": (["--sites", "0.resid_post,1.mlp_out", "--seeds", "1", "--longer", "0", "--rates", "1e-2", "--no-scores",
               *SIZES], "table.json", SiteTable, "1.mlp_out"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_beside_the_result(folder, data, tmp_path, capsys, monkeypatch, name):
    options, file, kind, said = COMMANDS[name]
    arguments = [name, folder, "--data", data, "--out", tmp_path / "out", "--quiet", *options]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert run(*arguments) == 0
    told = capsys.readouterr().err
    assert "no page: a page of the result needs matplotlib, which is not installed. Run: pip install" in told
    found = kind.load(tmp_path / "out" / file)
    assert not (tmp_path / "out" / "index.html").exists()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run(*arguments, "--resume", "--json", "-") == 0
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "out" / file).read_text(encoding="utf-8")
    assert f"report: {tmp_path / 'out' / 'index.html'}" in printed.err
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"mine": 1}))
    assert run(*arguments, "--resume", "--json", other) == 2
    assert "other.json" in capsys.readouterr().err
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert_sound(html, name)
    assert said in html
    # Runs, and an adapter, stay where they were.
    kept = {path for path in before if path.parent.name in ("runs", "adapter")}
    assert kept
    assert all(path.is_file() for path in kept)
    assert type(found) is type(kind.load(tmp_path / "out" / file))
