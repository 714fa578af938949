"""Every notebook runs in its light setting and is committed with what a full run gave."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|root|Users|work|workspace|mnt|opt|tmp)/\w")


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """Say what is wrong with a committed notebook."""
    found = []
    made = outputs(notebook)
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    if not made:
        found.append("no outputs")
    if any(output.output_type == "error" for output in made):
        found.append("an error among the outputs")
    if any(output.get("name") == "stderr" for output in made):
        found.append("something on stderr")
    if not any("image/png" in output.get("data", {}) for output in made):
        found.append("no figure")
    if MACHINE_PATH.search(nbformat.writes(notebook)):
        found.append("a path of a machine")
    if "?" not in words[0]:
        found.append("no question in the first cell")
    if not any(text.startswith("## What was found") for text in words):
        found.append("no section 'What was found'")
    if any("```" in text for text in words):
        found.append("code in words")
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        found.append("cells not run once each from top to bottom")
    return found


def test_there_are_eight():
    assert [path.name[:2] for path in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_committed_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    assert complaints(notebook) == []
    assert notebook.metadata == runner().METADATA
    pictures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert all(output.metadata["image/png"]["alt"] for output in pictures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_notebook_runs_light(path, tmp_path, monkeypatch):
    monkeypatch.setenv("STEERSCOPE_LIGHT", "1")
    # The user's own profile and history stay out of it.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = path.read_bytes()
    assert complaints(runner().executed(path, timeout=600)) == []
    assert path.read_bytes() == before


def notebook_of(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=list(cells))


def test_what_is_wrong_is_found():
    error = nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])
    stderr = nbformat.v4.new_output("stream", name="stderr", text="see |root|x".replace("|", "/"))
    words = nbformat.v4.new_markdown_cell("# Title")
    bad = notebook_of(words, nbformat.v4.new_code_cell("x", outputs=[error, stderr], execution_count=3))
    assert complaints(bad) == [
        "an error among the outputs",
        "something on stderr",
        "no figure",
        "a path of a machine",
        "no question in the first cell",
        "no section 'What was found'",
        "cells not run once each from top to bottom",
    ]
    assert "no outputs" in complaints(notebook_of(words))
