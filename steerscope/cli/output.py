"""Checks of where results will be written, made before any long work starts."""

from __future__ import annotations

import os
from pathlib import Path

from steerscope.errors import InputError

OVERWRITE = ", or add --overwrite to replace the report in it"
RESUME = ", or add --resume to go on with what is in it"


def check_folder(folder: Path, *, overwrite: bool, advice: str = OVERWRITE) -> None:
    """Refuse a report folder that is a file, is not empty, or cannot be made or written. Nothing is made yet.

    Args:
        folder: Where the report will go.
        overwrite: Allow a folder that holds something.
        advice: What else to do than to name another folder, in the command's own options.

    Raises:
        InputError: The folder cannot be used.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(
                f"--out {str(folder)!r} is a file; expected a folder (it is made if missing). Name another."
            )
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise InputError(f"--out {str(folder)!r} is not empty; nothing was touched. Name another folder{advice}.")
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name too long, a folder that cannot be listed
        raise InputError(f"--out {str(folder)!r} cannot be used ({error.strerror}). Name another folder.") from error
    if not nearest.is_dir():
        raise InputError(f"--out {str(folder)!r} is below the file {str(nearest)!r}; expected a folder. Name another.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {str(folder)!r}: folder {str(nearest)!r} cannot be written to. Name another one, or change its "
            "permissions."
        )


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
