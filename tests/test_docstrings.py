"""Public functions of two or more arguments say in their docstrings what they take and what comes back."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "steerscope"
# Functions that may lack the section, by room (a folder of the package): the commands, whose docstrings are their help
# texts and whose options describe themselves, and what the Trainer calls, whose arguments transformers describes.
WITHOUT_ARGS = {"cli": 11, "steering": 6}
WITHOUT_RETURNS = {"cli": 1}
NOTHING = {"None", "NoReturn", "Iterator[None]", "Generator[None]"}


def public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Yield the public functions of a module and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def lacking(source: str) -> Iterator[tuple[str, str]]:
    """Yield name and missing section of every public function of two or more arguments beside self."""
    for function in public_functions(ast.parse(source)):
        taken = function.args
        named = [arg for arg in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs) if arg.arg not in ("self", "cls")]
        if len(named) + (taken.vararg is not None) + (taken.kwarg is not None) < 2:
            continue
        lines = [line.strip() for line in (ast.get_docstring(function) or "").splitlines()]
        if "Args:" not in lines:
            yield function.name, "Args"
        returned = ast.unparse(function.returns) if function.returns else "None"
        if returned not in NOTHING and not {"Returns:", "Yields:"} & set(lines):
            yield function.name, "Returns"


@cache
def counted() -> dict[str, Counter[str]]:
    """Return how many functions of every room lack each section."""
    rooms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        rooms[parts[0] if len(parts) > 1 else ""].update(lack for _, lack in lacking(path.read_text("utf-8")))
    return rooms


def above(section: str, allowed: dict[str, int]) -> dict[str, str]:
    """Return the rooms in which more functions than allowed lack a section."""
    found = {room: lacks[section] for room, lacks in counted().items()}
    return {room: f"{n}, allowed {allowed.get(room, 0)}" for room, n in found.items() if n > allowed.get(room, 0)}


def test_arguments_are_described() -> None:
    assert not above("Args", WITHOUT_ARGS)


def test_what_comes_back_is_described() -> None:
    assert not above("Returns", WITHOUT_RETURNS)


def test_missing_sections_are_found() -> None:
    source = '''
def bare(a, b) -> int:
    """Return a sum."""
def full(a, b) -> int:
    """Return a sum.

    Args:
        a: One.
        b: The other.

    Returns:
        Their sum.
    """
def one(a) -> int:
    """Return it."""
def _private(a, b) -> int:
    """Return a sum."""
class Kept:
    def put(self, a, *, b) -> None:
        """Put them."""
    def get(self, a) -> int:
        """Get it."""
'''
    assert list(lacking(source)) == [("bare", "Args"), ("bare", "Returns"), ("put", "Args")]
