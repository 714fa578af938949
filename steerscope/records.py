"""Results as JSON files: a frozen dataclass is written as it is, and read back strictly, field by field.

Reading checks every type (pydantic's strict mode), refuses unknown and missing fields and numbers that are not finite,
and says which field is wrong.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from steerscope.errors import InputError, shortened
from steerscope.files import parse_json, read_text
from steerscope.folders import write_result

T = TypeVar("T")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# A whole number that some files have as a float, ``80.0``.
Count = Annotated[int, BeforeValidator(_whole)]
# Most wrong fields that a message names.
NAMED = 3


def copied(kind: type[T], source: Any) -> T:
    """Return a record made of what another object calls the same.

    Args:
        kind: The record's class, a dataclass.
        source: Has an attribute for each of its fields.

    Returns:
        The record.
    """
    return kind(**{field.name: getattr(source, field.name) for field in dataclasses.fields(cast(Any, kind))})


def fields_of(kind: type[Any], data: Any) -> Any:
    """Return what JSON holds of a record's fields: those that a later version added are left out.

    Args:
        kind: The record's class, a dataclass.
        data: What a JSON file holds; what is no object is returned as it is.

    Returns:
        The values by name.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: data[name] for name in names if name in data} if isinstance(data, Mapping) else data


class Record:
    """A frozen dataclass that is kept as one JSON file, and says what it is called and known by.

    ``class SiteTable(Record, what="site table", sign="runs")``: messages say "site table", and no other JSON file than
    one with a field ``runs`` is ever replaced.
    """

    _what = _sign = ""

    def __init_subclass__(cls, what: str = "", sign: str = "", **others: Any) -> None:
        super().__init_subclass__(**others)
        cls._what, cls._sign = what or cls._what, sign or cls._sign

    def to_json(self) -> str:
        """Return what :meth:`save` writes: all fields, those with their default too.

        Raises:
            ValueError: A number is NaN or infinite.
        """
        return json.dumps(self.as_dict(), indent=1, sort_keys=True, allow_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Return what the file holds, as JSON-able values."""
        return dataclasses.asdict(cast(Any, self))

    def save(self, path: str | Path) -> None:
        """Write it as a JSON file, whole or not at all.

        Raises:
            InputError: Something else is there, or it cannot be written.
        """
        write_result(path, self.to_json().rstrip("\n"), self._sign)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild what :meth:`to_json` wrote.

        Returns:
            A result equal to the one that was written.

        Raises:
            InputError: The text is not JSON, of another schema version, or has fields that do not fit.
        """
        return cls._read(text, "the text")

    @classmethod
    def from_dict(cls, data: Any, where: str = "what was given") -> Self:
        """Rebuild what :meth:`as_dict` returned.

        Args:
            data: What a JSON file holds.
            where: What it is from, for messages.

        Returns:
            A result equal to the one that it was made of.

        Raises:
            InputError: It is of another schema version, or has fields that do not fit.
        """
        return cls._of(data, where)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Returns:
            A result equal to the one that was saved.

        Raises:
            InputError: The file cannot be read, or holds no such result.
        """
        return cls._read(read_text(Path(path), f"the {cls._what}"), str(path))

    @classmethod
    def _read(cls, text: str, where: str) -> Self:
        try:
            data = parse_json(text)
        except ValueError as error:
            raise InputError(f"{cls._problem(where)}: invalid JSON ({error}). Make it again.") from error
        return cls._of(data, where)

    @classmethod
    def _of(cls, data: Any, where: str) -> Self:
        """Return what JSON holds as a result, which messages say to be from ``where``."""
        return record_of(data, cls, cls._problem(where))

    @classmethod
    def _problem(cls, where: str) -> str:
        return f"{where} is not {'an' if cls._what[:1] in 'aeiou' else 'a'} {cls._what}"


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
    except (TypeError, ValueError) as error:
        raise InputError(f"{problem}: it is no JSON ({error}). Numbers that are none are null there.") from error
    try:
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
    return f"{field} is {shortened(repr(received))}; {message.replace('Input should be', 'expected')}"


@lru_cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    """Return the strict reader of a dataclass; nested ones are read by the same rules."""
    return TypeAdapter(kind)
