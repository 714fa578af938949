"""Reading and writing so that nothing is lost: files appear whole or not at all, and trouble is said in one sentence.

In Python all of it is an :class:`~steerscope.errors.InputError` whose cause is what the system raised.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steerscope.errors import InputError, reason_of

UNFINISHED = ".unfinished-"
"""How the name of a file begins that is being written, aside of what it becomes: another process may be at it."""

# Libraries written in Rust (safetensors, tokenizers) put the system's number into their own errors.
_NUMBER = re.compile(r"os error (\d+)|\bOs \{ code: (\d+)")
# torch says where in its archive it failed, and not why.
_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error", "unexpected pos")
_SPACE = "Free some space, or name a place with more"
# What file systems without hard links answer.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or name another place",
    errno.EACCES: "Change its permissions, or name another",
    errno.EPERM: "Change its permissions, or name another",
    errno.EROFS: "Name a place that can be written to",
    errno.ENOTDIR: "A part of the path is a file; name another",
    errno.EEXIST: "Something of that name is in the way; name another",
    errno.EISDIR: "It is a folder; name a file",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.ELOOP: "A symbolic link leads back to itself; name another",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
}


def trouble(error: BaseException) -> tuple[str, str] | None:
    """Return why the file system refused and what to do, or ``None`` if an error is of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and isinstance(error, Exception):
        if (found := _NUMBER.search(str(error))) is not None:
            number = int(found[1] or found[2])
        elif isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITER):
            return "the file could not be written to its end; is the disk full?", _SPACE
    if number is None:
        return None
    return os.strerror(number), _ADVICE.get(number, "Check the path")


def sentence_of(error: OSError) -> str:
    """Return one sentence about an error that nothing else spoke of: which file, why, what to do."""
    found = trouble(error)
    if found is None:
        return reason_of(error)
    names = [repr(str(name)) for name in (error.filename, error.filename2) if name is not None]
    where = f"cannot read or write {' or '.join(names)}" if names else "reading or writing failed"
    return f"{where} ({found[0]}). {found[1]}."


@contextmanager
def told(doing: str, advice: str = "") -> Iterator[None]:
    """Turn what the file system refuses in the block into one sentence.

    Args:
        doing: What is done to what, after "cannot": ``"write the report to 'folder'"``.
        advice: What to do instead of what the reason suggests, without a full stop.

    Raises:
        InputError: The file system refused.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (found := trouble(error)) is None:
            raise
        raise InputError(f"cannot {doing} ({found[0]}). {advice or found[1]}.") from error


def read_text(path: Path, what: str) -> str:
    """Return the text of a UTF-8 file, without a byte order mark; ``what`` names it in messages (``"the ranking"``).

    Args:
        path: The file.
        what: What it is, for messages.

    Returns:
        The text.

    Raises:
        InputError: It cannot be read or is not UTF-8.
    """
    with told(f"read {what} {str(path)!r}"):
        try:
            return _fresh_text(path)
        except UnicodeDecodeError as error:
            raise InputError(
                f"cannot read {what} {str(path)!r}: byte {error.start} is not UTF-8. Is it another file?"
            ) from error


def parse_json(text: str) -> Any:
    """Return what a JSON text holds; a NaN or an infinity in it, which Python would read, is an error of its syntax.

    Raises:
        json.JSONDecodeError: The text is not JSON, or nested deeper than Python reads.
    """

    def number(spelled: str) -> float:
        value = float(spelled)
        if not math.isfinite(value):
            raise json.JSONDecodeError(f"{spelled} is no finite number", text, max(text.find(spelled), 0))
        return value

    try:
        return json.loads(text, parse_constant=number, parse_float=number)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", text, 0) from error


def json_of(path: Path) -> Any:
    """Return what a JSON file holds, with a byte order mark (as Windows writes) or without.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8 or no JSON, holds NaN or infinity, or is nested too deeply.
    """
    return parse_json(_fresh_text(path))


def read_object(path: Path, what: str, advice: str = "It was cut off or damaged.") -> dict[str, Any]:
    """Read a file that must hold one JSON object.

    Args:
        path: The file.
        what: What it is, for messages.
        advice: What to do where it is damaged, a sentence.

    Returns:
        The object.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        found = parse_json(read_text(path, what))
    except ValueError as error:
        raise InputError(f"{what} {str(path)!r} cannot be read ({error}). {advice}") from error
    if not isinstance(found, dict):
        raise InputError(f"{what} {str(path)!r} holds a {type(found).__name__}; expected a JSON object. {advice}")
    return found


def json_text(values: Any) -> str:
    """Return values as the text of a JSON file.

    Raises:
        InputError: JSON has no such values.
    """
    try:
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"what is kept must be JSON: {error}. Give plain, finite values.") from error


def _fresh_text(path: Path) -> str:
    """Return a file's text; one that another machine replaced while it was opened is opened again."""
    for _ in range(9):
        with _passing_stale():
            return path.read_text(encoding="utf-8-sig")
    return path.read_text(encoding="utf-8-sig")


@contextmanager
def _passing_stale() -> Iterator[None]:
    """Go on after a file handle that a network file system calls stale."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise


def replace_file(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file so that it appears whole, or stays what it was; several processes may do so at once.

    A link is followed. What is not a regular file (``/dev/null``, a pipe) is written to as it is.

    Args:
        path: The file; its folder has to exist.
        write_to: Writes the file under the name that it is given, beside ``path``.

    Raises:
        InputError: The file cannot be written.
    """
    with told(f"write {str(path)!r}"):
        target = path.resolve() if path.is_symlink() else path
        if target.exists() and not target.is_file():
            write_to(target)
            return
        # A short name: the file's own may be as long as the system allows.
        aside = target.with_name(f"{UNFINISHED}{secrets.token_hex(6)}{target.suffix[:16]}")
        try:
            write_to(aside)
            if target.exists():
                shutil.copymode(target, aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all.

    Args:
        path: The file; its folder has to exist.
        text: What it will hold, written with line feeds on every system.

    Raises:
        InputError: The file cannot be written.
    """
    replace_file(path, lambda aside: aside.write_text(text, encoding="utf-8", newline="\n"))


def create_text(path: Path, text: str) -> bool:
    """Write a text file as UTF-8 unless one is there, whole or not at all; of several processes one succeeds.

    Args:
        path: The file; its folder has to exist.
        text: What it will hold.

    Returns:
        Whether it was written.

    Raises:
        InputError: The file cannot be written.
    """
    with told(f"write {str(path)!r}"):
        aside = path.with_name(f"{UNFINISHED}{secrets.token_hex(6)}{path.suffix[:16]}")
        try:
            with aside.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            return _is_linked(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _is_linked(aside: Path, path: Path) -> bool:
    """Give a file another name, unless that is taken, in one step; without hard links, in two.

    Returns:
        Whether it has that name now.

    Raises:
        OSError: The file system refuses.
    """
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        aside.replace(path)
    return True


@contextmanager
def written_aside(
    folder: Path, what: str, *, last: Sequence[str] = (), instead_of: Sequence[str] = ()
) -> Iterator[Path]:
    """Give an empty folder to write files in; when all of them are whole they move into ``folder``.

    If the block or the move fails, is interrupted or the disk is full, ``folder`` stays as it was. Other files in it
    are left.

    Args:
        folder: Where the files go; made if missing.
        what: What is written, for messages: ``"the report"``.
        last: Names of files that say the rest is complete. Earlier ones of the first such name are taken away before
            anything moves, and these move last: it is never beside files of another save.
        instead_of: Patterns of earlier files that go away with the move, such as figures that are drawn no more.

    Yields:
        The empty folder.

    Raises:
        InputError: The folder cannot be made or written to.
    """
    with told(f"write {what} to {str(folder)!r}", "Name a folder that can be written to" if _is_closed(folder) else ""):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f"{UNFINISHED}{secrets.token_hex(6)}"
        try:
            aside.mkdir()
            yield aside
            files = sorted(path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
            ends = [Path(name) for name in last]
            gone = [*ends[:1], *(old.relative_to(folder) for pattern in instead_of for old in folder.glob(pattern))]
            moving = [*(name for name in files if name not in ends), *(name for name in ends if name in files)]
            _exchange(folder, aside, moving, gone)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if made:
                with suppress(OSError):  # only if nothing came of it
                    folder.rmdir()


def _exchange(folder: Path, aside: Path, names: Sequence[Path], gone: Sequence[Path]) -> None:
    """Move files of ``aside`` into ``folder``; whatever stops it on the way, the files that were there come back.

    Args:
        folder: Where the files go.
        aside: Where they are.
        names: What moves, in this order.
        gone: Earlier files that are taken away before.
    """
    earlier = aside.with_name(f"{aside.name}-earlier")
    try:
        for name in gone:
            _moved(folder / name, earlier / name)
        for name in names:
            _moved(folder / name, earlier / name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).replace(folder / name)
    except BaseException:
        # What moved is read from the folders themselves: an interrupt may come between a move and a note of it.
        for name in names:
            if not (aside / name).exists() and not (folder / name).is_dir():
                (folder / name).unlink(missing_ok=True)
        for old in [path for path in earlier.rglob("*") if path.is_symlink() or not path.is_dir()]:
            old.replace(folder / old.relative_to(earlier))
        shutil.rmtree(earlier, ignore_errors=True)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _moved(old: Path, kept: Path) -> None:
    """Move an earlier file to where it is kept; a folder in its place is left, and refused by the move over it."""
    if old.is_symlink() or (old.exists() and not old.is_dir()):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process was first
            old.replace(kept)


def _is_closed(folder: Path) -> bool:
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    return nearest is None or not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK)


@contextmanager
def alone_in(folder: Path, doing: str) -> Iterator[None]:
    """Refuse to work in a folder in which another process does the same; its end, however it comes, frees the folder.

    Where the system has no such locks (Windows, some network file systems) nothing is refused.

    Args:
        folder: A folder that exists.
        doing: What happens in it, for the message: ``"train"``.

    Raises:
        InputError: Another process works in it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process is about to {doing} in {str(folder)!r}. Wait until it is "
                "done, or name another folder."
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
