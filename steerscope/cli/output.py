"""Checks of where results will be written, made before any long work starts; pages beside results, at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steerscope.cli.words import as_typed
from steerscope.errors import InputError
from steerscope.files import told
from steerscope.folders import Kind, require_folder_for, require_json_file, write_result
from steerscope.installed import require

OVERWRITE = ", or add --overwrite to replace the report in it"
RESUME = ", or add --resume to go on with what is in it"


def check_folder(
    folder: Path, kind: Kind, *, overwrite: bool, advice: str = OVERWRITE, also: Iterable[Kind] = ()
) -> None:
    """Refuse a folder that is a file, is not empty, holds another sort of thing, or cannot be made or written.

    Nothing is made yet.

    Args:
        folder: Where the results will go.
        kind: What they are.
        overwrite: Allow a folder that holds something, if it is of this kind.
        advice: What else to do than to name another folder, in the command's own options.
        also: Other sorts that may be in it.

    Raises:
        InputError: The folder cannot be used.
    """
    with told(f"use --out {str(folder)!r}", "Name another folder"):  # a name too long, a folder that cannot be listed
        if folder.exists() and not folder.is_dir():
            raise InputError(
                f"--out {str(folder)!r} is a file; expected a folder (it is made if missing). Name another."
            )
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise InputError(f"--out {str(folder)!r} is not empty; nothing was touched. Name another folder{advice}.")
        if folder.is_symlink() and not folder.exists():
            raise InputError(
                f"--out {str(folder)!r} is a symbolic link to {os.readlink(folder)!r}, which is not there. Make that "
                "folder, or name another."
            )
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {str(folder)!r} is below the file {str(nearest)!r}; expected a folder. Name another.")
    require_folder_for(folder, kind, also=also)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {str(folder)!r}: folder {str(nearest)!r} cannot be written to. Name another one, or change its "
            "permissions."
        )


def check_json_target(target: str | None, sign: str) -> None:
    """Refuse a JSON file in a folder that is not there or cannot be written, or over another file.

    Args:
        target: What ``--json`` says.
        sign: A field of such results; see :func:`~steerscope.folders.require_json_file`.

    Raises:
        InputError: The file cannot be written.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    with told(f"use --json {target!r}", "Name another file"):
        parent = path.resolve().parent
        if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(f"--json {target!r} cannot be written; expected a file in an existing folder, or '-'.")
    require_json_file(path, sign)


def say(sentence: str) -> None:
    """Print a sentence that a user should read, in the words of the command line, on the error stream."""
    print(f"  {as_typed(sentence)}.", file=sys.stderr, flush=True)


def page_beside(writer: str, result: Any, folder: Path) -> None:
    """Write a result's page beside it, and say where; without the packages that draw, say what to install.

    The result is saved already: a page that cannot be drawn takes nothing away from it.

    Args:
        writer: Name of a function of ``steerscope.reports``.
        result: What the page is of.
        folder: The result's folder.

    Raises:
        InputError: The folder cannot be written to.
    """
    try:
        require("report", "a page of the result")
    except InputError as error:
        print(f"no page: {error}", file=sys.stderr)
        return
    from steerscope import reports  # matplotlib is slow to load

    print(f"report: {getattr(reports, writer)(result, folder)}", file=sys.stderr)


def give_json(target: str | None, text: str, sign: str) -> bool:
    """Write a result where ``--json`` says, or print it.

    Args:
        target: What ``--json`` says.
        text: The result as JSON.
        sign: As for :func:`check_json_target`.

    Returns:
        Whether it was printed, so that nothing else may be.

    Raises:
        InputError: The file cannot be written.
    """
    if target == "-":
        print(text.rstrip("\n"))
        return True
    if target is not None:
        write_result(target, text.rstrip("\n"), sign)
    return False
