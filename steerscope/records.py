"""Results as JSON files: a frozen dataclass is written as it is, and read back strictly, field by field.

Reading checks every type (pydantic's strict mode), refuses unknown and missing fields and numbers that are not finite,
and says which field is wrong.
"""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from steerscope.errors import InputError
from steerscope.files import parse_json, read_text

T = TypeVar("T")
# Most wrong fields that a message names.
NAMED = 3
# Characters of a wrong value that a message shows.
SHOWN = 80


def record_text(record: Any) -> str:
    """Return a dataclass as JSON text; fields that hold their default are written too.

    Raises:
        ValueError: A number in it is NaN or infinite.
    """
    return json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True, allow_nan=False)


def read_record(path: str | Path, kind: type[T], what: str) -> T:
    """Read a dataclass from a file that holds its :func:`record_text`.

    Args:
        path: The file.
        kind: The dataclass; a field ``schema_version`` with a default has to hold that value.
        what: What the file is, for messages: "site table".

    Returns:
        The record.

    Raises:
        InputError: No such file, not JSON, another schema version, or fields that are missing, unknown, or of a wrong
            type.
    """
    return parse_record(read_text(Path(path), f"the {what}"), kind, what, str(path))


def parse_record(text: str, kind: type[T], what: str, where: str = "the text") -> T:
    """Read a dataclass from its :func:`record_text`; see :func:`read_record`.

    Args:
        text: The text.
        kind: The dataclass.
        what: What it should be.
        where: What it is from.

    Returns:
        An instance of ``kind``, every field checked.
    """
    article = "an" if what[0] in "aeiou" else "a"
    problem = f"{where} is not {article} {what}"
    try:
        data = parse_json(text)
    except ValueError as error:
        raise InputError(f"{problem}: invalid JSON ({error}). Make it again.") from error
    return record_of(data, kind, problem)


def record_of(data: Any, kind: type[T], problem: str) -> T:
    """Return plain JSON values as a dataclass.

    Args:
        data: What a JSON file holds.
        kind: The dataclass.
        problem: How a message begins.

    Returns:
        An instance of the dataclass, every field checked.

    Raises:
        InputError: Fields do not fit.
    """
    expected = {field.name: field.default for field in dataclasses.fields(kind)}.get("schema_version")  # type: ignore[arg-type]
    found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
    if expected is not None and found != expected:
        raise InputError(
            f"{problem}: it has schema_version {found!r}, this steerscope reads {expected}. Make it again, or use the "
            "version that wrote it."
        )
    try:
        # From text: JSON has no tuples, which strict mode takes lists for only when it reads JSON itself.
        text = json.dumps(data, allow_nan=False)
        return cast(T, _reader(cast(Any, kind)).validate_json(text, strict=True, extra="forbid"))
    except ValidationError as error:
        wrong = [_told(one["type"], ".".join(map(str, one["loc"])), one["msg"], one["input"]) for one in error.errors()]
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise InputError(f"{problem}: {'; '.join(wrong[:NAMED])}{more}. Correct it, or make it again.") from error


def _told(sort: str, field: str, message: str, received: object) -> str:
    """Return what is wrong with a field: that it is missing or unknown, or what it is and what was expected."""
    if sort == "missing":
        return f"it lacks {field!r}"
    if sort == "unexpected_keyword_argument":
        return f"it has an unknown {field!r}"
    shown = repr(received)
    shown = shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 20]}..."
    return f"{field} is {shown}; {message.replace('Input should be', 'expected')}"


@lru_cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    """Return the strict reader of a dataclass; nested ones are read by the same rules."""
    return TypeAdapter(kind)
