"""Files that one of several processes makes, and all read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steerscope.errors import InputError
from steerscope.files import create_text, json_of, json_text, told


def kept_once(path: Path, make: Callable[[], Any]) -> Any:
    """Return what a JSON file holds; where it is missing, it is made: of several processes all get the same.

    Args:
        path: The file; its folder has to exist.
        make: Computes what it holds.

    Returns:
        What the file holds.
    """
    if not path.exists():
        create_text(path, json_text(make()))
    return json_of(path)


def begin(path: Path, what: str, asked: Mapping[str, Any], *, folder: Path, advice: str) -> None:
    """Write down what the work in a folder is, or refuse to go on there with another one.

    Args:
        path: The file that says it.
        what: The work's name: "sweep".
        asked: What decides results; ``options`` among it are named one by one.
        folder: What the message calls the folder.
        advice: What else to do than to name another folder: "Go on with the same".

    Raises:
        InputError: Another work was begun there.
    """
    asked = json.loads(json.dumps(asked, allow_nan=False))
    with told(f"make the folder {str(path.parent)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    found = kept_once(path, lambda: asked)
    flat = {**found, **found.get("options", {})} if isinstance(found, dict) else {}
    wanted = {**asked, **asked["options"]}
    if differ := sorted(name for name, value in wanted.items() if name != "options" and flat.get(name) != value):
        if "schema_version" in differ:
            raise InputError(
                f"the {what} in {str(folder)!r} was begun by another version of steerscope, which keeps other things. "
                "Name another folder."
            )
        raise InputError(
            f"the {what} in {str(folder)!r} was begun with another {', '.join(differ)}. {advice}, or name another "
            "folder."
        )
