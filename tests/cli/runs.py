"""Tiny models and data on disk, and the command line run on them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from steerscope.cli import main
from tests.tiny import tiny_model, tiny_tokenizer

CHOICES = [" 1", " 2", " 3"]


def save_model(folder: Path, family: str = "llama", **overrides) -> Path:
    """Save a tiny model with its tokenizer as a transformers folder."""
    tiny_model(family, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def question(i: int) -> str:
    return f"[ MAX {i % 7} {i * 3 % 5 + 7} {i % 40} ] ="


def lines(count: int) -> list[dict]:
    """Multiple choice, each choice one token."""
    return [{"prompt": question(i), "choices": CHOICES, "answer_index": i % 3} for i in range(count)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    """Run the command line in this process."""
    return main([str(argument) for argument in arguments])


def one_sentence(text: str) -> str:
    """Return what the command line said, after checking that it is one line and no traceback."""
    assert "Traceback" not in text
    said = [line for line in text.splitlines() if line.startswith("steerscope: ")]
    assert len(said) == 1, text
    assert text.splitlines()[-1] == said[0], text
    assert not re.search(r"\x1b", text)
    return said[0]
