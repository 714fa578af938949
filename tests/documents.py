"""The blocks of code in the documents, and how they are run: on a tiny model in place of the bundled one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import steerscope
from steerscope.models import wrap_model
from tests.byte_models import byte_model, byte_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BUNDLED = "smollm2-135m"
# Sizes that a page names and a tiny model can do without: name of the argument, and the most of it.
MOST = {"n": 24, "max_examples": 24, "steps": 2, "test_examples": 4}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """Return a page's blocks of some languages ("" for none), in their order."""
    return [body for language, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def section_of(text: str, heading: str) -> str:
    """Return a page's section of second level whose title begins so, with its title; nothing where there is none."""
    found = re.search(rf"^## {re.escape(heading)}.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def lessened(code: str) -> str:
    """Return code with sizes that a tiny model does in seconds."""
    for name, most in MOST.items():
        code = re.sub(
            rf"\b{name}=(\d+)", lambda found, most=most: f"{found[0].split('=')[0]}={min(int(found[1]), most)}", code
        )
    return code


def command_lines(page: Path) -> Iterator[str]:
    """Yield the lines of a page's blocks of commands, comments left out."""
    for body in blocks(page, "", "bash", "sh", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            if plain := re.split(r"\s+#\s", line, maxsplit=1)[0].strip():
                yield plain


class Runner:
    """Runs a page's blocks of Python one after the other, as a reader types them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.loaded = wrap_model(byte_model(num_hidden_layers=30), byte_tokenizer(), name=BUNDLED)
        self.asked: list[str] = []
        monkeypatch.setattr(steerscope, "load_model", self._load)
        monkeypatch.chdir(folder)

    def _load(self, name: str = BUNDLED, **_: Any) -> Any:
        self.asked.append(name)
        return self.loaded

    def run(self, page: Path, *, whole: bool = True) -> list[dict[str, Any]]:
        """Return the names that each block leaves; they go on to the next one (``whole``), or each starts anew."""
        names: dict[str, Any] = {}
        left = []
        for code in blocks(page, "python"):
            names = dict(names) if whole else {}
            exec(compile(lessened(code), str(page), "exec"), names)
            left.append(names)
        return left

    def run_code(self, code: str) -> dict[str, Any]:
        """Return the names that code leaves."""
        names: dict[str, Any] = {}
        exec(compile(code, "code", "exec"), names)
        return names
