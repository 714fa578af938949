"""What is published: ranges that leave others room, extras that the documents name, a wheel of the package alone."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from steerscope.installed import EXTRAS

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


SETTINGS = tomllib.loads(read("pyproject.toml"))
PROJECT, SETUPTOOLS = SETTINGS["project"], SETTINGS["tool"]["setuptools"]
OPTIONAL = PROJECT["optional-dependencies"]
# Extras that are large and that few need: not in "all".
APART = {"ray"}
REQUIRED = [Requirement(text) for text in PROJECT["dependencies"]]
BY_EXTRA = {name: [Requirement(text) for text in texts] for name, texts in OPTIONAL.items()}
# What a user gets; tools of development may be pinned.
FOR_USERS = [*REQUIRED, *(one for name in EXTRAS for one in BY_EXTRA[name])]


def floor(one: Requirement) -> str:
    (only,) = one.specifier
    assert only.operator == ">=", (
        f"{one}: a requirement has a floor and, without a reason that is written down, no more"
    )
    return only.version


@pytest.mark.parametrize("one", FOR_USERS, ids=str)
def test_every_requirement_has_a_floor_and_no_ceiling(one):
    assert re.fullmatch(r"[\d.]+", floor(one))


@pytest.mark.parametrize("text", ["torch>=2.6,<3", "torch", "torch==2.6", "torch>=2.6,!=2.8"])
def test_another_range_would_be_found(text):
    with pytest.raises((AssertionError, ValueError)):
        floor(Requirement(text))


def test_the_code_and_the_metadata_know_the_same_extras():
    assert set(OPTIONAL) == {*EXTRAS, "all", "dev", "docs"}
    for name, texts in EXTRAS.items():
        assert sorted(texts) == sorted(OPTIONAL[name])
    (everything,) = BY_EXTRA["all"]
    assert (everything.name, everything.extras) == ("steerscope", set(EXTRAS) - APART)


def pins(name: str) -> dict[str, str]:
    found = [Requirement(line) for line in read(name).splitlines() if line and not line.startswith("#")]
    pinned = {canonicalize_name(one.name): next(iter(one.specifier)).version for one in found}
    assert len(pinned) == len(found)
    assert all([spec.operator for spec in one.specifier] == ["=="] for one in found)
    return pinned


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_fit_the_requirements(name):
    pinned = pins(name)
    tools = [one for one in BY_EXTRA["dev"] if not one.extras]
    tools += BY_EXTRA["docs"] if name == "constraints.txt" else []  # the documentation is built on one set alone
    for one in [*FOR_USERS, *tools]:
        assert one.specifier.contains(pinned[canonicalize_name(one.name)]), f"{one} in {name}"


@pytest.mark.parametrize("one", FOR_USERS, ids=str)
def test_the_oldest_constraints_are_the_floors(one):
    pinned = pins("constraints-oldest.txt")[canonicalize_name(one.name)]
    shortest = re.sub(r"(\.0)+$", "", pinned)
    assert floor(one) in (pinned, shortest), f"{one} is tried on {pinned}"


@pytest.mark.parametrize("one", FOR_USERS, ids=str)
def test_every_floor_has_its_reason(one):
    table = re.findall(r"^\| `([\w-]+)` \| (\S+) \| ([^|]+) \|", read("docs/install.md"), re.MULTILINE)
    reasons = {canonicalize_name(name): (version, why) for name, version, why in table}
    version, why = reasons[canonicalize_name(one.name)]
    assert version == floor(one)
    assert len(why.split()) > 3


def test_every_extra_that_is_named_exists():
    pages = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    groups = [group for text in pages.values() for group in re.findall(r"steerscope\[([\w,]+)\]", text)]
    named = {name for group in groups for name in group.split(",")}
    assert named <= set(OPTIONAL)
    install = pages[ROOT / "docs" / "install.md"]
    assert all(f"`{name}`" in install for name in (*EXTRAS, "all"))


def test_pythons_agree():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    named = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert named[0] == oldest
    assert SETTINGS["tool"]["mypy"]["python_version"] == oldest
    assert SETTINGS["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_readme_on_the_index_has_no_path_of_the_repository():
    spec = importlib.util.spec_from_file_location("setup_of_steerscope", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = re.compile(r"\]\(([^)]+)\)")
    assert any(not one.startswith("https://") for one in target.findall(read("README.md")))
    for source in (None, "https://example.org/owner/name"):
        page = module.for_the_index(read("README.md"), source)
        assert all(one.startswith(("https://", "#")) for one in target.findall(page))
        assert ("https://example.org/owner/name/blob/main/docs/install.md" in page) == (source is not None)
        assert ("![" in page) == (source is not None)
        assert "arxiv.org/abs/2603.00425" in page


def test_only_the_package_is_in_the_wheel():
    from setuptools import find_packages

    found = find_packages(str(ROOT), include=SETUPTOOLS["packages"]["find"]["include"])
    assert found
    assert all(name == "steerscope" or name.startswith("steerscope.") for name in found)


def test_every_file_that_is_no_code_is_packed():
    files = [path for path in (ROOT / "steerscope").rglob("*") if path.is_file()]
    wanted = [path for path in files if path.suffix not in (".py", ".pyc")]
    assert len(wanted) > 4
    for path in wanted:
        package = ".".join(path.parent.relative_to(ROOT).parts)
        packed = SETUPTOOLS["package-data"].get(package, ())
        assert any(path.match(pattern) for pattern in packed), path.relative_to(ROOT)
