"""Notebooks and documents import the public names alone."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOORS = ("steerscope", "steerscope.reports", "steerscope.theory")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")])


def code_of(path: Path) -> list[str]:
    """Return the Python of a notebook or of a page, cell by cell or block by block."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def not_public(code: str) -> Iterator[str]:
    """Yield what a piece of Python takes from the package that is not public."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name for name in names if name.split(".")[0] == "steerscope" and name not in DOORS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "steerscope":
            public = import_module(node.module).__all__ if node.module in DOORS else ()
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_only_public_names(path):
    assert [name for code in code_of(path) for name in not_public(code)] == []


def test_there_is_something_to_read():
    read = {path.name for path in PAGES if any("steerscope" in code for code in code_of(path))}
    assert {"README.md", "scores.md", "sites.md", "steering.md"} <= read
    assert sum(path.suffix == ".ipynb" and path.name in read for path in PAGES) == 8


def test_what_the_guide_names_is_there():
    guide = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## Where is it?")[1].split("\n## ")[0]
    named = re.findall(r"`(steerscope/[^`]+)`", guide)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "code",
    [
        "from steerscope.sites import Site",
        "from steerscope import lazy",
        "import steerscope.models.load",
        "def late():\n    from steerscope.theory import catalogue",
        "from steerscope.reports.tables import plain_table",
    ],
)
def test_a_private_name_is_found(code):
    assert len(list(not_public(code))) == 1


def test_public_names_are_not_found():
    code = "import steerscope\nimport steerscope.reports\nfrom steerscope import Site as Place\nimport torch"
    assert list(not_public(code)) == []
