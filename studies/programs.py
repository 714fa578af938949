"""What the programs of this folder share: how they end, and how they write a page."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from steerscope.errors import InputError, typed
from steerscope.files import read_text, sentence_of, trouble, write_text


def exit_code_of(program: str, work: Callable[[], int | None]) -> int:
    """Return the exit code of a program of this package: 2, after one sentence on stderr, for what is refused.

    Args:
        program: Its name, before the sentence.
        work: What it does; returns its exit code, or nothing for 0.

    Returns:
        What ``sys.exit`` takes.

    Raises:
        OSError: One that says nothing a user could do something about.
    """
    try:
        return work() or 0
    except InputError as error:
        print(f"{program}: {typed(error)}", file=sys.stderr)
    except OSError as error:
        if trouble(error) is None:
            raise
        print(f"{program}: {sentence_of(error)}", file=sys.stderr)
    return 2


def program(name: str) -> Callable[[Callable[[], int | None]], Callable[[], int]]:
    """Make a function that reads its arguments and works a program's ``main``; see :func:`exit_code_of`.

    Args:
        name: Of the program, before the sentence on stderr.

    Returns:
        What makes of the function one that returns the exit code.
    """

    def ended(work: Callable[[], int | None]) -> Callable[[], int]:
        return functools.wraps(work)(lambda: exit_code_of(name, work))

    return ended


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows a program's docstring as it is written."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def write_page(path: Path, head: str, text: str) -> None:
    """Write a generated page; a file that is there is replaced only if it begins with the same title.

    Args:
        path: The file.
        head: What every version of the page begins with; its first line is compared.
        text: The page.

    Raises:
        InputError: Another file is there, or it cannot be written.
    """
    title = head.partition("\n")[0]
    if path.is_file() and not read_text(path, "the page").startswith(title):
        raise InputError(
            f"the file {str(path)!r} is there and is another one than the page {title.lstrip('# ')!r}, so it was not "
            "touched. Name the page last, or delete that file first."
        )
    write_text(path, text)


def portable(command: str) -> str:
    """Return a command as it may be printed: of absolute paths, which are one machine's, their last two names.

    Args:
        command: What was typed.

    Returns:
        ``steerscope train m --out runs/sft-0`` of ``steerscope train m --out /somewhere/runs/sft-0``.
    """
    parts = [part if not Path(part).is_absolute() else "/".join(Path(part).parts[-2:]) for part in shlex.split(command)]
    return shlex.join(parts)
