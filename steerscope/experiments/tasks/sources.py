"""Where rows of tasks come from: local JSON lines, or the ``datasets`` package (optional)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steerscope.analysis.data.files import text_lines
from steerscope.errors import InputError, did_you_mean, reason_of
from steerscope.experiments.tasks.task import Row, RowSource
from steerscope.installed import require


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face hub.

    Attributes:
        path: Its name there.
        config: Which configuration of it.
        convert: Turns one of its rows into the fields that local files have.
        parts: What it calls a part, where the name differs.
    """

    path: str
    config: str | None
    convert: Callable[[Row], Row]
    parts: Mapping[str, str] = field(default_factory=dict)


def local_rows(folder: str | Path, name: str) -> RowSource:
    """Return the rows of ``<folder>/<name>-<part>.jsonl`` or ``.jsonl.gz``, one JSON object per line.

    Args:
        folder: Where the files are. Nothing in them is executed.
        name: Stem of the files.

    Returns:
        A function that yields the rows of a part, each with its place for messages.

    Raises:
        InputError: There is no such folder; later, when rows are asked for: no such file, or a line (named by its
            number) that is not a JSON object.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"there is no folder {str(folder)!r} with files of task {name!r}. Check the path.")

    def rows(part: str) -> Iterator[tuple[str, Row]]:
        stem = place / f"{name}-{part}.jsonl"
        path = next((p for p in (stem, stem.with_name(f"{stem.name}.gz")) if p.is_file()), None)
        if path is None:
            if (earlier := sorted(place.glob(f"{name}_bare-{part}.jsonl*"))) and earlier[0].is_file():
                old = earlier[0].name
                raise InputError(
                    f"task {name!r} needs {stem.name} or {stem.name}.gz in {str(folder)!r}; {old} is of the earlier "
                    f"task {name}_bare and is not read. Rename it to {old.replace('_bare', '', 1)}."
                )
            near = did_you_mean(stem.name, [p.name for p in place.glob("*.jsonl*")])
            raise InputError(
                f"task {name!r} needs {stem.name} or {stem.name}.gz in {str(folder)!r}, which is not there.{near} "
                "Give the folder that holds it as [[data_dir]]."
            )
        for number, line in text_lines(path):
            where = f"{path.name}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not valid JSON ({error}). Correct or remove that line.") from error
            if not isinstance(row, dict):
                raise InputError(f"{where} is a {type(row).__name__}; expected a JSON object. Correct that line.")
            yield where, row

    return rows


def hub_rows(source: HubSource, name: str) -> RowSource:
    """Return the rows of a data set on the hub, through the ``datasets`` package and its cache.

    Args:
        source: Where the data set is, and how its rows become the task's.
        name: Name of the task, for messages.

    Returns:
        A function that yields the rows of a part, each with its place for messages.

    Raises:
        InputError: The extra ``data`` is not installed; later, when rows are asked for: they cannot be reached.
    """
    require("data", f"task {name!r} without [[data_dir]] (a folder with {name}-train.jsonl.gz and the like)")
    import datasets  # slow to load

    def rows(part: str) -> Iterator[tuple[str, Row]]:
        wanted = source.parts.get(part, part)
        try:
            found = datasets.load_dataset(source.path, source.config, split=wanted)
        except Exception as error:  # network, cache and hub errors have no common type
            reason = reason_of(error, 200)
            raise InputError(
                f"cannot read the {wanted} part of {source.path!r} from the hub or its cache ({reason}). Go online "
                f"once, or give a folder with {name}-{part}.jsonl.gz as [[data_dir]]."
            ) from error
        for number, row in enumerate(found):
            where = f"{source.path} {wanted}, row {number}"
            try:
                yield where, source.convert(row)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{where} has not the fields this version of steerscope knows ({error!r}). Give local files as "
                    "[[data_dir]]."
                ) from error

    return rows
