"""Runs in one small file: what the page of claims reads of them, so that it can be written again without the folders.

Per run the file holds its results without generations, which test questions it answered rightly (a bit each, the
questions named once per test set), and what was measured for claim (f).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from steerscope.errors import InputError
from steerscope.experiments.claims.leftover import LEFTOVER
from steerscope.experiments.claims.rule import rights
from steerscope.experiments.comparison.groups import run_folders
from steerscope.experiments.training.records import RunResults
from steerscope.experiments.training.run_folder import GENERATIONS, RESULTS, read_json, read_results

SCHEMA_VERSION = 1
# Long, and read by nobody once the numbers are there.
_LEFT_OUT = ("evaluation",)
_LEFT_OUT_OF_TRAINING = ("losses",)


def keep(folders: Sequence[str | Path], file: Path) -> None:
    """Write what claims are decided by, of all runs in some folders.

    Raises:
        InputError: A run is damaged.
    """
    questions: dict[str, list[str]] = {}
    runs = []
    for place in run_folders(folders):
        read_results(place)  # strictly
        results = {k: v for k, v in read_json(place / RESULTS, "a run").items() if k not in _LEFT_OUT}
        results["training"] = {k: v for k, v in results["training"].items() if k not in _LEFT_OUT_OF_TRAINING}
        right = rights(str(place))
        names = questions.setdefault(results["test_set"], sorted(right))
        if names != sorted(right):
            raise InputError(f"{str(place)!r} answered other questions than runs of the same test set. Run it again.")
        run: dict[str, Any] = {"results": results, "right": "".join(str(right[name]) for name in names)}
        if (place / LEFTOVER).exists():
            run["leftover"] = read_json(place / LEFTOVER, "a measurement")
        runs.append(run)
    text = json.dumps({"schema_version": SCHEMA_VERSION, "questions": questions, "runs": runs}, allow_nan=False)
    # A line per run: a difference between two versions of the file then shows which runs changed.
    file.write_text(text.replace('{"results"', '\n{"results"') + "\n", encoding="utf-8")


@contextmanager
def with_kept(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Give back folders of runs, files of kept runs among them unpacked for as long as the context lasts.

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
        for i, run in enumerate(values["runs"]):
            RunResults.from_dict(run["results"], f"run {i} of {str(file)!r}")
            names, right = values["questions"][run["results"]["test_set"]], run["right"]
            if len(names) != len(right) or {*right} - {"0", "1"}:
                raise ValueError(f"run {i} has {len(right)} answers to {len(names)} questions")
            folder = place / f"{i:04d}"  # names of a file that may come from anywhere are no paths
            folder.mkdir(parents=True)
            bits = zip(names, right, strict=True)
            rows = [{"key": name.rpartition("#")[0], "is_right": bit == "1"} for name, bit in bits]
            (folder / RESULTS).write_text(json.dumps(run["results"]), encoding="utf-8")
            (folder / GENERATIONS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            if "leftover" in run:
                (folder / LEFTOVER).write_text(json.dumps(run["leftover"]), encoding="utf-8")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{str(file)!r} holds no kept runs ({error!r}). Write it again with --keep.") from error
