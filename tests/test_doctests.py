"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import unittest
from pathlib import Path

import pytest

import steerscope

ROOT = Path(steerscope.__file__).parent


def _modules() -> list[str]:
    """Return the names of the modules with an example."""
    files = (path for path in sorted(ROOT.rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8"))
    dotted = (path.relative_to(ROOT.parent).with_suffix("").as_posix().replace("/", ".") for path in files)
    return [name.removesuffix(".__init__") for name in dotted]


MODULES = _modules()


def test_there_are_examples() -> None:
    assert len(MODULES) >= 20


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    suite = doctest.DocTestSuite(importlib.import_module(name))
    assert suite.countTestCases() > 0, "an example stands where doctest does not look"
    result = unittest.TestResult()
    suite.run(result)
    assert not result.errors, result.errors[0][1]
    assert not result.failures, result.failures[0][1]
