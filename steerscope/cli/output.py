"""Checks of where results will be written, made before any long work starts."""

from __future__ import annotations

import os
from pathlib import Path

from steerscope.errors import InputError


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a report folder that is a file, is not empty, or cannot be written.

    Args:
        folder: Where the report will go; created if missing.
        overwrite: Allow a folder that holds something.

    Raises:
        InputError: The folder cannot be used.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r} is a file; expected a folder (it is made if missing).")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(
            f"--out {str(folder)!r} is not empty; nothing was touched. Name another folder, or add --overwrite "
            "to replace the report in it."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(folder)!r} ({error.strerror}). Name another one.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"folder {str(folder)!r} cannot be written to. Name another one, or change its permissions.")


def check_json_target(target: str | None) -> None:
    """Refuse a JSON file in a folder that is not there or cannot be written.

    Raises:
        InputError: The file cannot be written.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    parent = path.parent
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--json {target!r} cannot be written; expected a file in an existing folder, or '-'.")
