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


def record_text(record: Any) -> str:
    """Return a dataclass as JSON text; fields that hold their default are written too.

    Raises:
        ValueError: A number in it is NaN or infinite.
    """
    return json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True, allow_nan=False)


def read_record(path: str | Path, kind: type[T], what: str) -> T:
    """Read a dataclass whose :func:`record_text` was written.

    Args:
        path: The file.
        kind: The dataclass; a field ``schema_version`` with a default has to hold that value.
        what: What the file is, for messages: "the site table".

    Returns:
        The record.

    Raises:
        InputError: No such file, not JSON, another schema version, or fields that are missing, unknown, or of a wrong
            type.
    """
    text = read_text(Path(path), what)
    try:
        return record_of(parse_json(text), kind, f"{path} is not {what}")
    except ValueError as error:
        raise InputError(f"{path} is not {what}: invalid JSON ({error}). Make it again.") from error


def record_of(data: Any, kind: type[T], problem: str) -> T:
    """Return plain JSON values as a dataclass.

    Args:
        data: What a JSON file holds.
        kind: The dataclass.
        problem: How a message begins.

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
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise InputError(f"{problem}: {'; '.join(wrong[:NAMED])}{more}. Correct it, or make it again.") from error


@lru_cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    """Return the strict reader of a dataclass; nested ones are read by the same rules."""
    return TypeAdapter(kind)
