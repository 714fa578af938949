"""Runs in one small file: what the page of claims reads of them, so that it can be written again without the folders.

Per run the file holds its results without generations, which test questions it answered rightly (a bit each, written as
one hexadecimal number; the questions are named once per test set), and what was measured beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from steerscope.errors import InputError
from steerscope.experiments.comparison.groups import run_folders
from steerscope.experiments.runs.folder import GENERATIONS, RESULTS, read_json, read_results
from steerscope.experiments.runs.records import RunResults
from steerscope.files import write_text
from steerscope.folders import require_json_file
from studies.claims.leftover import LEFTOVER
from studies.claims.recalibrated import RECALIBRATED
from studies.claims.rule import rights
from studies.programs import portable

SCHEMA_VERSION = 1
# Long, and read by nobody once the numbers are there.
_LEFT_OUT = ("evaluation",)
MEASURED = {"leftover": LEFTOVER, "recalibrated": RECALIBRATED}


def keep(folders: Sequence[str | Path], file: Path) -> None:
    """Write what claims are decided by, of all runs in some folders; an earlier such file is replaced.

    Raises:
        InputError: A run is damaged, or something else is in the file, or it cannot be written.
    """
    require_json_file(file, "questions")
    questions: dict[str, list[str]] = {}
    runs = []
    for place in run_folders(folders):
        read_results(place)  # strictly
        results = {k: v for k, v in read_json(place / RESULTS, "a run").items() if k not in _LEFT_OUT}
        results["command"] = portable(results.get("command", ""))
        right = rights(str(place))
        asked = _in_order(right)
        names = questions.setdefault(results["test_set"], asked)
        if names != asked:
            raise InputError(f"{str(place)!r} answered other questions than runs of the same test set. Run it again.")
        run: dict[str, Any] = {"results": results, "right": _to_hex([right[name] for name in names])}
        run |= {
            name: read_json(place / file, "a measurement") for name, file in MEASURED.items() if (place / file).exists()
        }
        runs.append(run)
    text = json.dumps({"schema_version": SCHEMA_VERSION, "questions": questions, "runs": runs}, allow_nan=False)
    # A line per run: a difference between two versions of the file then shows which runs changed.
    lines = text.replace('{"results"', '\n{"results"') + "\n"
    write_text(file, lines)  # whole or not at all: it may be one of the files that were read


def _in_order(right: Mapping[str, int]) -> list[str]:
    """Return the names of questions sorted, and one that is asked several times in the order of its times."""
    return sorted(right, key=lambda name: (name.rpartition("#")[0], int(name.rpartition("#")[2])))


@contextmanager
def with_kept(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Give back folders of runs, files of kept runs among them unpacked for as long as the context lasts.

    Yields:
        The folders, in the order of the paths.

    Raises:
        InputError: A file is damaged or of another sort.
    """
    with TemporaryDirectory() as place:
        found = []
        for i, path in enumerate(map(Path, paths)):
            if path.is_file():
                _unpack(path, Path(place, str(i)))
                found.append(Path(place, str(i)))
            else:
                found.append(path)
        yield found


def _unpack(file: Path, place: Path) -> None:
    values = read_json(file, "kept runs")
    try:
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {values['schema_version']!r}; expected {SCHEMA_VERSION}")
        if not values["runs"]:
            raise ValueError("no runs")
        for i, run in enumerate(values["runs"]):
            found = RunResults.from_dict(run["results"], f"run {i} of {str(file)!r}")
            names = values["questions"][run["results"]["test_set"]]
            right = _from_hex(run["right"], len(names))
            if sum(right) != found.correct:
                raise ValueError(f"run {i} has {sum(right)} right answers and says {found.correct}")
            bits = zip(names, right, strict=True)
            folder = place / f"{i:04d}"  # names of a file that may come from anywhere are no paths
            folder.mkdir(parents=True)
            rows = [{"key": name.rpartition("#")[0], "is_right": bit} for name, bit in bits]
            (folder / RESULTS).write_text(json.dumps(run["results"], allow_nan=False), encoding="utf-8")
            (folder / GENERATIONS).write_text(
                "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8"
            )
            for name, check in (("leftover", _check_leftover), ("recalibrated", _check_recalibrated)):
                if name in run:
                    check(run[name])
                    (folder / MEASURED[name]).write_text(json.dumps(run[name], allow_nan=False), encoding="utf-8")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{str(file)!r} holds no kept runs ({error!r}). Write it again with [[keep]].") from error


def _check_leftover(found: Mapping[str, Any]) -> None:
    """Ask for all that the page reads; raises what a wrong file raises."""
    _check_types(found, {"task": str, "method": str, "model": dict, "seed": int, "kl_base": float, "spaces": list})
    _check_types(found["model"], {"name": str})
    for row in found["spaces"]:
        _check_types(row, {"kind": str, "rank": int, "kl": float})


def _check_recalibrated(found: Mapping[str, Any]) -> None:
    _check_types(found, {"n": int})
    if found["accuracy"] is not None:
        _check_types(found, {"accuracy": float})


def _check_types(found: Mapping[str, Any], wanted: Mapping[str, type]) -> None:
    for name, kind in wanted.items():
        if not isinstance(found[name], kind):
            raise TypeError(f"{name} of a measurement is {found[name]!r}; expected {kind.__name__}")


def _to_hex(bits: Sequence[int]) -> str:
    """Write bits as one number behind a leading 1, which keeps their count."""
    return f"{int('1' + ''.join(map(str, bits)), 2):x}"


def _from_hex(text: str, count: int) -> list[bool]:
    bits = f"{int(text, 16):b}"[1:]
    if len(bits) != count:
        raise ValueError(f"{len(bits)} answers to {count} questions")
    return [bit == "1" for bit in bits]
