"""Records: what is written is read back, and what does not fit is refused by its field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from steerscope.errors import InputError
from steerscope.records import Record


@dataclass(frozen=True)
class Inner(Record):
    losses: tuple[float, ...]
    diverged: bool = False


@dataclass(frozen=True)
class Outer(Record, what="record", sign="runs"):
    runs: tuple[Inner, ...]
    counts: dict[str, int | None]
    schema_version: int = 3


RECORD = Outer((Inner((1.0, 0.5)),), {"test": 16, "train": None})


def _written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(RECORD.to_json()) | changes))
    return path


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Outer.load(_written(tmp_path)) == RECORD
    assert Outer.from_json(RECORD.to_json()) == RECORD


def test_no_other_file_is_replaced(tmp_path: Path) -> None:
    RECORD.save(tmp_path / "record.json")
    RECORD.save(tmp_path / "record.json")
    assert Outer.load(tmp_path / "record.json") == RECORD
    other = tmp_path / "other.json"
    other.write_text('{"schema_version": 3}')
    with pytest.raises(InputError, match="holds something else"):
        RECORD.save(other)
    assert other.read_text() == '{"schema_version": 3}'


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema_version": 4}, "schema_version 4, this steerscope reads 3"),
        ({"counts": {"test": 1.5}}, "counts.test"),
        ({"runs": [{"losses": [1.0, "2"]}]}, r"runs.0.losses.1"),
        ({"runs": [{"losses": [1.0], "loss": 2.0}]}, r"runs.0.loss"),
        ({"runs": [{"losses": [1.0], "diverged": 1}]}, r"runs.0.diverged"),
        ({"more": 1}, "more"),
        ({"counts": {"test": float("nan")}}, "NaN"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Outer.load(_written(tmp_path, **changes))


def test_numbers_that_are_not_finite_are_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Inner((float("inf"),)).to_json()
