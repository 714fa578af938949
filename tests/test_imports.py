"""The shape of the package: imports point one way, the door is small, versions agree, no path of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module, metadata
from pathlib import Path

import pytest

import steerscope
from steerscope import reports, theory
from tests.test_shown import SHOWN

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "steerscope"

# Every room may import itself and what stands before it.
ORDER = [
    "errors",
    "installed",
    "lazy",
    "process",
    "finite",
    "files",
    "folders",
    "records",
    "site_kinds",
    "sites",
    "option_types",
    "model_identity",
    "models",
    "equivalence",
    "steering",
    "analysis",
    "experiments",
    "reports",
    "theory",
    "cli",
    "__main__",
]


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_modules(source: str, module: str) -> Iterator[str]:
    """Yield everything a source file imports, by its full name, wherever in it and however it spells it."""
    parent = module.rsplit(".", 1)[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(parent.split(".")[: len(parent.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_rooms(source: str, module: str) -> Iterator[str]:
    """Yield the rooms a source file imports."""
    for name in imported_modules(source, module):
        parts = name.split(".")
        if parts[0] == "steerscope" and len(parts) > 1:
            yield parts[1]


def violations(source: str, module: str) -> list[str]:
    room = module.split(".")[1]
    return [
        f"{module} imports steerscope.{other}"
        for other in imported_rooms(source, module)
        if other not in ORDER or ORDER.index(other) > ORDER.index(room)
    ]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_every_file_stands_in_a_room():
    assert {room_of(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_imports_point_one_way(room):
    files = [file for file in FILES if room_of(file) == room]
    found = [v for file in files for v in violations(file.read_text(encoding="utf-8"), module_of(file))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from steerscope.analysis.ranking import rank_sites",
        "import steerscope.analysis",
        "from steerscope import analysis",
        "def late():\n    from steerscope.analysis import scoring",
        "from ..analysis import scoring",
        "from steerscope.reports.tables import plain_table",
        "from .. import analysis",
        "from steerscope import rank_sites",  # the public door imports every room
    ],
)
def test_a_wrong_import_is_found(source):
    assert len(violations(source, "steerscope.equivalence.shifts")) == 1


def test_only_results_that_are_printed_look_for_their_report():
    """Imports by a name that is put together go past the test above.

    Scores and propositions load their own files, doors what they give, which the tests of the doors below read; a
    result that is printed points upwards, and its rooms exist.
    """
    naming = [module_of(file) for file in FILES if "import_module" in file.read_text(encoding="utf-8")]
    assert naming == [
        "steerscope.analysis.scoring.scores.__init__",
        "steerscope.analysis.shown",
        "steerscope.equivalence.propositions.catalogue",
        "steerscope.lazy",
    ]
    kinds = {type(make()) for make, _ in SHOWN.values()}
    rooms = {kind._report for kind in kinds if kind._report}
    assert rooms == {"comparison", "ranking", "site_tables", "validation", "verification"}
    for room in rooms:
        assert callable(import_module(f"steerscope.reports.{room}.screen").paragraphs)


def test_a_right_import_is_not_found():
    source = "from steerscope.models.load import LoadedModel\nfrom . import edits\nfrom ..errors import InputError"
    assert violations(source, "steerscope.equivalence.shifts") == []


# --- files are small ------------------------------------------------------------------------------------------

MOST_LINES = 399
# Files that may be longer, and why.
LONGER: dict[str, str] = {}


def longer_than(most: int, files: list[Path]) -> dict[str, int]:
    lengths = {module_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    return {name: length for name, length in lengths.items() if length > most}


def test_no_file_is_long():
    """A file of more lines holds more than one idea, and a second file is where a newcomer would look for the other."""
    assert set(longer_than(MOST_LINES, [*FILES, PACKAGE / "__init__.py"])) == set(LONGER)


def test_a_long_file_is_found():
    longest = max(FILES, key=lambda file: len(file.read_text(encoding="utf-8").splitlines()))
    assert list(longer_than(300, [longest])) == [module_of(longest)]


# --- propositions are checks, not a library ------------------------------------------------------------------

PROOFS = "steerscope.equivalence.propositions"
# Where the theory is tried.
TRIED_IN = (PROOFS, "steerscope.experiments.verification", "steerscope.theory")


def inside(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def uses_of_proofs(source: str, module: str) -> list[str]:
    if any(inside(module, place) for place in TRIED_IN):
        return []
    return [f"{module} imports {name}" for name in imported_modules(source, module) if inside(name, PROOFS)]


def test_no_product_code_imports_propositions():
    assert [use for file in FILES for use in uses_of_proofs(file.read_text(encoding="utf-8"), module_of(file))] == []


@pytest.mark.parametrize(
    "source",
    [
        "from steerscope.equivalence.propositions.catalogue import all_propositions",
        "from steerscope.equivalence import propositions",
        "def late():\n    import steerscope.equivalence.propositions.runs",
        "from ..equivalence.propositions import parts",
    ],
)
def test_a_use_of_propositions_is_found(source):
    assert len(uses_of_proofs(source, "steerscope.steering.oracles")) == 1
    assert uses_of_proofs(source, "steerscope.experiments.verification.run") == []


# --- no circles within a room ------------------------------------------------------------------------------

# Files and folders of one room that import each other, and why they may.
CIRCLES = {
    "steering": {
        ("checkpointing", "passes"): "a block run again belongs to the pass it was first run in",
        ("control_vectors", "model"): "SteeringModel.export_gguf; what is exported is a SteeringModel",
        ("lora_export", "model"): "SteeringModel.export_lora; what is exported is a SteeringModel",
        ("merging", "model"): "SteeringModel.merge_and_unload; what is merged is a SteeringModel",
    },
}


def neighbours(room: str, sources: dict[str, str]) -> dict[str, set[str]]:
    """Return which files and folders of a room every other one of them imports.

    Args:
        room: Name of the room, ``experiments``.
        sources: Source texts by module name, ``steerscope.experiments.runs.folder``.
    """
    place, found = f"steerscope.{room}", {}
    for module, source in sources.items():
        own = module.removeprefix(f"{place}.").split(".")[0]
        names = (name for name in imported_modules(source, module) if name.startswith(f"{place}."))
        found.setdefault(own, set()).update({name.removeprefix(f"{place}.").split(".")[0] for name in names} - {own})
    return found


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("room", [room for room in ORDER if (PACKAGE / room).is_dir()])
def test_no_circles_within_a_room(room):
    files = [file for file in FILES if room_of(file) == room and file != PACKAGE / room / "__init__.py"]
    graph = neighbours(room, {module_of(file): file.read_text(encoding="utf-8") for file in files})
    for first, second in CIRCLES.get(room, {}):
        assert second in graph[first], f"{first} and {second} are no circle any more; take them off the list"
        assert first in graph[second], f"{first} and {second} are no circle any more; take them off the list"
        graph[first].remove(second)
    assert circle_in(graph) == []


def test_a_circle_is_found():
    sources = {
        "steerscope.experiments.one.ask": "from steerscope.experiments.other.keep import Kept",
        "steerscope.experiments.other.keep": "def late():\n    from ..one import ask",
        "steerscope.experiments.other.run": "from steerscope.experiments.other import keep",
    }
    assert set(circle_in(neighbours("experiments", sources))) == {"one", "other"}
    del sources["steerscope.experiments.other.keep"]
    assert circle_in(neighbours("experiments", sources)) == []


# --- the door ----------------------------------------------------------------------------------------------


# The public modules, and how many names each may have. The first is what users type: per command a function, its
# options and its result, beside models, tasks, adapters and errors. The others are long lists of one sort each.
DOORS = {steerscope: 55, reports: 55, theory: 70}


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_door_is_small_and_every_name_resolves(door):
    names = door.__all__
    assert len(names) == len(set(names)) <= DOORS[door]
    assert names == sorted(names, key=lambda name: (not name[0].isupper(), name))
    assert set(names) == set(door._HOMES)
    for name in names:
        home, _, other = door._HOMES[name].partition(":")
        assert getattr(door, name) is getattr(import_module(f"steerscope.{home}"), other or name)
        assert getattr(door, name).__doc__
    assert set(names) <= set(dir(door))
    with pytest.raises(AttributeError, match=f"module '{door.__name__}' has no attribute 'rank_site'"):
        door.rank_site  # noqa: B018


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_type_checkers_see_the_same_names(door):
    tree = ast.parse(Path(door.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) == set(door.__all__)
    for name, (module, there) in seen.items():
        assert getattr(import_module(module), there) is getattr(door, name)


@pytest.mark.parametrize(
    "module",
    [
        "steerscope",
        "steerscope.reports",
        "steerscope.theory",
        "steerscope.cli",
        "steerscope.sites",
        "steerscope.errors",
    ],
)
def test_import_is_light(module):
    heavy = ("torch", "transformers", "matplotlib", "scipy", "numpy")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- versions ----------------------------------------------------------------------------------------------


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_versions_agree():
    settings = tomllib.loads(read("pyproject.toml"))
    assert set(settings["project"]["dynamic"]) == {"version", "readme"}
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "steerscope.__version__"}
    citation = re.search(r"^version: (\S+)$", read("CITATION.cff"), re.MULTILINE)
    newest = re.search(r"^## (\d\S*)", read("CHANGELOG.md"), re.MULTILINE)  # below what is unreleased
    assert citation is not None
    assert newest is not None
    assert citation[1] == newest[1] == steerscope.__version__ == metadata.version("steerscope")


def test_licences_agree():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    citation = re.search(r"^license: (\S+)$", read("CITATION.cff"), re.MULTILINE)
    assert citation is not None
    assert project["license"] == citation[1] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0, January 2004" in read("LICENSE")


# --- no path of a machine ----------------------------------------------------------------------------------

# A home or work folder at the start of an absolute path.
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|Users|work|workspace|mnt|opt)/\w")
ENDINGS = {".py", ".md", ".toml", ".txt", ".cff", ".json", ".ipynb", ".yaml", ".yml", ".css", ".js", ".jinja", ""}


def texts() -> Iterator[tuple[str, str]]:
    places = [ROOT / name for name in ("steerscope", "studies", "tests", "docs", "benchmarks", "notebooks", ".ci")]
    files = [file for place in places for file in place.rglob("*")] + list(ROOT.glob("*"))
    for file in sorted(files):
        if file.is_file() and file.suffix in ENDINGS and "__pycache__" not in file.parts:
            yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")


def test_no_path_of_a_machine():
    found = [f"{name}: {match[0]}" for name, text in texts() for match in MACHINE_PATH.finditer(text)]
    assert found == []
    assert not [name for name, text in texts() if f"{ROOT}/" in text]
    assert {"README.md", "Makefile", "steerscope/__init__.py", "tests/tiny.py"} <= {name for name, _ in texts()}


# Written with | for the slash, so that this file passes its own test.
@pytest.mark.parametrize("text", ["open('|home|ann|x')", "see |root|x", "|Users|ann|data", "=|work|x", "|tmp|x"])
def test_a_path_of_a_machine_is_found(text):
    assert MACHINE_PATH.search(text.replace("|", "/"))


@pytest.mark.parametrize("text", ["docs|work|x", "https:||example.org|home|ann", ".|root|x", "a |work day"])
def test_other_paths_are_left_alone(text):
    assert not MACHINE_PATH.search(text.replace("|", "/"))
