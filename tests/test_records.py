"""Records: what is written is read back, and what does not fit is refused by its field."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steerscope.errors import InputError
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.groundwork.carriers import CARRYING
from steerscope.experiments.runs.records import RunResults
from steerscope.experiments.searching.options import SearchOptions
from steerscope.experiments.searching.result import SearchSettings
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.experiments.site_tables.table_parts import TableSchedule, TrainedEdit
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.result import Validation, ValidationSettings
from steerscope.experiments.verification.results import Verification, VerifySettings
from steerscope.experiments.verification.run import VerifyOptions
from steerscope.option_types import LOADING
from steerscope.records import Record
from steerscope.steering.config import SteeringConfig


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


KEPT = {
    "docs/results/validation-tiny-gemma2-listops.json": Validation,
    "docs/results/verify-random.json": Verification,
    "docs/results/verify-smollm2-135m.json": Verification,
    "studies/site_tables/small-gpt2-compare_next.json": SiteTable,  # whole numbers as floats
    "studies/site_tables/replications/smollm2-135m-listops-vector.json": SiteTable,  # made without a ranking
}


def _lost(before: Any, after: Any, place: str = "") -> list[str]:
    """Return where a file of before has what is not written any more; what is new is nothing or empty."""
    if isinstance(before, dict) and isinstance(after, dict):
        gone = [f"{place}.{name}" for name in before if name not in after]
        new = [f"{place}.{name}" for name in after if name not in before and not _is_nothing(after[name])]
        both = [name for name in before if name in after]
        return gone + new + [one for name in both for one in _lost(before[name], after[name], f"{place}.{name}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [one for pair in zip(before, after, strict=True) for one in _lost(*pair, f"{place}[]")]
    return [] if before == after else [place]


def _is_nothing(value: Any) -> bool:
    return all(map(_is_nothing, value.values())) if isinstance(value, dict) else value in (None, "", [])


@pytest.mark.parametrize("name", KEPT)
def test_a_file_of_before_is_read_and_loses_nothing(name: str) -> None:
    path = Path(__file__).parents[1] / name
    assert _lost(json.loads(path.read_text()), json.loads(KEPT[name].load(path).to_json())) == []


def test_runs_of_before_are_read_and_lose_nothing() -> None:
    kept = json.loads((Path(__file__).parents[1] / "docs/results/claims.json").read_text())["runs"]
    assert len(kept) > 100
    for one in kept:
        again = json.loads(RunResults.from_dict(one["results"]).to_json())
        assert _lost(one["results"], again | {"model_from_files": None}) == []


@pytest.mark.parametrize(
    ("settings", "options", "left_out"),
    [
        (ValidationSettings, ValidateOptions, LOADING),
        (SearchSettings, SearchOptions, (*LOADING, *CARRYING)),
        (VerifySettings, VerifyOptions, ("revision", "trust_remote_code")),
        (TableSchedule, Schedule, ()),
        (TrainedEdit, SteeringConfig, ("sites", "seed")),
    ],
)
def test_a_record_of_options_has_all_that_decide(settings: Any, options: Any, left_out: tuple[str, ...]) -> None:
    told = {one.name for one in dataclasses.fields(settings)} - {"command"}
    assert told == {one.name for one in dataclasses.fields(options)} - set(left_out)


def test_a_table_with_a_wrong_value_is_refused() -> None:
    told = json.loads((Path(__file__).parents[1] / "studies/site_tables/small-gpt2-compare_next.json").read_text())
    assert SiteTable.from_dict(told).schedule.steps == 60
    told["schedule"]["steps"] = 60.5
    with pytest.raises(InputError, match=r"schedule\.steps is 60\.5; expected a valid integer"):
        SiteTable.from_dict(told)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), {1, 2}], ids=["NaN", "infinity", "a set"])
def test_what_json_cannot_hold_is_refused_as_a_record(odd) -> None:
    values = json.loads(RECORD.to_json())
    values["counts"]["test"] = odd
    with pytest.raises(InputError, match=r"it is no JSON \(.*Numbers that are none are null there"):
        Outer.from_dict(values)
