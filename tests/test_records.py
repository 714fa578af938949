"""Records: what is written is read back, and what does not fit is refused by its field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from steerscope.errors import InputError
from steerscope.records import read_record, record_text


@dataclass(frozen=True)
class Inner:
    losses: tuple[float, ...]
    diverged: bool = False


@dataclass(frozen=True)
class Outer:
    runs: tuple[Inner, ...]
    counts: dict[str, int | None]
    schema_version: int = 3


RECORD = Outer((Inner((1.0, 0.5)),), {"test": 16, "train": None})


def _written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(record_text(RECORD)) | changes))
    return path


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_record(_written(tmp_path), Outer, "record") == RECORD


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
        read_record(_written(tmp_path, **changes), Outer, "record")


def test_numbers_that_are_not_finite_are_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        record_text(Inner((float("inf"),)))
