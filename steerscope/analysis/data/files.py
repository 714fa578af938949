"""Files of examples: JSON lines, tables of prompts and completions, and data sets of the ``datasets`` package."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from steerscope.analysis.data.conversations import conversation, written_out
from steerscope.analysis.data.examples import Example, kind_of, right_choice, shown
from steerscope.errors import InputError, did_you_mean
from steerscope.installed import require

_FIELDS = ("prompt", "completion", "choices", "answer_index")
# Nearer than this to a field's name, another name is a slip ("promt"); "source_index" or "prompt_id" are not.
_SLIP = 0.85
_LINE_FORMAT = (
    '{"prompt": "...", "completion": "..."}, for multiple choice with "choices": ["...", "..."] and "answer_index": 0'
)
_TABLES = {".csv": ",", ".tsv": "\t"}


def read_examples(source: str | Path) -> list[Example]:
    """Read examples from a file or a data set, whatever it is.

    Args:
        source: A file of JSON lines (:func:`read_jsonl`); a table ``.csv`` or ``.tsv`` with the columns ``prompt`` and
            ``completion``, plain or gzip-compressed; a folder that ``Dataset.save_to_disk`` wrote; or, where no such
            file exists, the name of a data set on the hub, ``OWNER/NAME`` or ``OWNER/NAME:CONFIG``, for which the extra
            ``data`` has to be installed. Of a data set with several parts ``train`` is taken.

    Returns:
        The examples in their order, duplicates included.

    Raises:
        InputError: It cannot be read, or a row (named by its number) is not an example.
    """
    path = Path(source)
    if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        return _read_data_set(str(source), from_disk=True)
    name = str(source)
    if not path.exists() and name.count("/") == 1 and not path.parent.exists() and not _suffix(path):
        return _read_data_set(name, from_disk=False)
    if (separator := _TABLES.get(_suffix(path))) is not None:
        return _read_table(path, separator)
    return read_jsonl(path)


def _suffix(path: Path) -> str:
    """Return the lower-case suffix of a file's name, ``.gz`` aside; of other words behind a dot none."""
    name = path.name.lower().removesuffix(".gz")
    return next((end for end in (".jsonl", ".json", ".txt", *_TABLES) if name.endswith(end)), "")


def read_jsonl(path: str | Path) -> list[Example]:
    """Read examples from a file of JSON lines, plain or gzip-compressed (``.jsonl``, ``.jsonl.gz``).

    Each line is an object with ``prompt`` and ``completion``; for multiple choice also ``choices`` (a list)
    and ``answer_index`` (counted from 0), and then ``completion`` may be left out. Either all lines have
    choices or none has. Other fields (``id``, ``source``, ...) are ignored, but a name that is nearly one of
    these four is refused as a slip. ``null`` counts as left out, blank lines are skipped and a byte order mark is
    accepted. Compression is recognised by content, not by name.

    Args:
        path: The file. It may come from anywhere: nothing in it is executed.

    Returns:
        The examples in file order, duplicates included; see :func:`check_examples`.

    Raises:
        InputError: The file is missing, a folder, unreadable, empty, not UTF-8, or a line (named by its
            number) is not an example.

    Cost: one pass; memory for the examples and for one line.
    """
    path = Path(path)
    return _collected(path, ((number, partial(_parse_line, line)) for number, line in text_lines(path)), "line")


def _collected(source: object, rows: Iterable[tuple[int, Callable[[], Example]]], unit: str) -> list[Example]:
    """Return the examples of numbered rows, all of one sort.

    Raises:
        InputError: A row is no example (its number is named), there are two sorts, or there is none.
    """
    examples: list[Example] = []
    first_line: dict[bool, int] = {}
    for number, make in rows:
        try:
            example = make()
        except InputError as error:
            raise InputError(f"{source}, {unit} {number}: {error}") from error
        first_line.setdefault(example.choices is not None, number)
        if len(first_line) == 2:
            raise InputError(
                f"{source}, {unit} {number}: the file mixes two sorts of examples: {unit} {first_line[True]} is the "
                f"first with choices, {unit} {first_line[False]} the first without; expected one sort. "
                'Give every line "choices" and "answer_index", or split the file in two.'
            )
        if examples and (example.messages is None) != (examples[0].messages is None):
            raise InputError(
                f"{source}, {unit} {number}: the file mixes conversations (messages) and plain prompts; expected one "
                "sort. Split the file in two."
            )
        examples.append(example)
    if not examples:
        raise InputError(
            f"{source}, {unit} 1: the file holds no examples (it is empty or blank); expected one JSON object per "
            f"line. Write lines like {_LINE_FORMAT}."
        )
    return examples


def _read_table(path: Path, separator: str) -> list[Example]:
    """Read a table whose first row names the columns ``prompt`` and ``completion``."""
    reader = csv.reader((line for _, line in all_lines(path)), delimiter=separator, strict=True)

    def rows() -> Iterator[tuple[int, Callable[[], Example]]]:
        header: list[str] | None = None
        try:
            for cells in reader:
                if not cells:
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    _check_header(path, header)
                    continue
                yield reader.line_num, partial(_example_of_cells, header, cells)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num}: no row of a table ({error}); expected cells between {separator!r}, "
                "with quotes around what holds a line break. Correct it, or write JSON lines."
            ) from error

    return _collected(path, rows(), "line")


def _check_header(path: Path, header: list[str]) -> None:
    if not {"prompt", "completion"} <= set(header) or len(set(header)) != len(header):
        raise InputError(
            f"{path}, line 1: the columns are {shown(header)}; expected a first row that names prompt and completion, "
            "each once. Rename the columns, or write JSON lines (for multiple choice, and for conversations)."
        )


def _example_of_cells(header: list[str], cells: list[str]) -> Example:
    if len(cells) != len(header):
        raise InputError(
            f"the row has {len(cells)} cells and the first one {len(header)}; expected as many. Put quotes around a "
            "text that holds the separator."
        )
    row = dict(zip(header, cells, strict=True))
    return Example(row["prompt"], row["completion"])


def _read_data_set(name: str, *, from_disk: bool) -> list[Example]:
    """Read a data set of the ``datasets`` package, from the hub (or its cache) or from a folder it wrote."""
    require("data", f"the data set {name!r}")
    import datasets  # slow to load

    try:
        if from_disk:
            found = datasets.load_from_disk(name)
        else:
            path, _, config = name.partition(":")
            found = datasets.load_dataset(path, config or None)
    except Exception as error:  # network, cache and hub errors have no common type
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"there is no file {name!r}, and no data set of that name on the hub or in its cache ({reason}). Check the "
            "path, or go online once."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        parts = list(found)
        if "train" not in parts and len(parts) != 1:
            raise InputError(
                f"the data set {name!r} has the parts {', '.join(parts)}; expected one called train, or one alone. "
                "Save the part you want as JSON lines: dataset.to_json(FILE)."
            )
        found = found["train" if "train" in parts else parts[0]]
    return _collected(name, ((number, partial(example_of, row)) for number, row in enumerate(found)), "row")


def _conversation(given: Mapping[str, Any]) -> Example:
    """Return the example of a conversation: its last message is what the model is to write."""
    if "choices" in given:
        raise InputError("choices do not go with messages; expected prompt, choices and answer_index. Leave one out.")
    if given["messages"] is not None:
        asked, answer = conversation(given["messages"])
    else:
        answers = given.get("completion")
        asked, answer = conversation([*given["prompt"], *(answers if isinstance(answers, list) else [answers])])
    return Example(written_out(asked), answer, messages=asked)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is not blank, decompressed and decoded.

    Yields:
        Number, from 1, and text.

    Raises:
        InputError: The file is missing, a folder, damaged or not UTF-8.
    """
    yield from ((number, line) for number, line in all_lines(path) if line.strip())


def all_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line, with its line break, decompressed and decoded.

    Raises:
        InputError: The file is missing, a folder, damaged or not UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
            stream: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            # Bytes split at b"\n" alone: text would also split at the U+2028 that JSON allows in strings.
            for number, line in enumerate(stream, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                yield number, content.decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; expected a file of JSON lines.{_near(path)} Check the path."
        ) from error
    except IsADirectoryError as error:
        raise InputError(
            f"{path} is a folder; expected a file of JSON lines. Name one file, such as {path / 'train.jsonl'}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: byte 0x{error.object[error.start]:02x} at position {error.start} is not "
            "UTF-8; expected UTF-8 text. Save the file again as UTF-8."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}, after line {number}: the gzip stream is damaged ({error}); expected a complete one. "
            "Copy or compress the file again."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot read {path} ({reason}); expected a readable file of JSON lines. "
            "Check the path and its permissions."
        ) from error


def _near(path: Path) -> str:
    """Say what stands near a missing file.

    Returns:
        A sentence that begins with a space, or an empty string.
    """
    try:
        return did_you_mean(path.name, [neighbour.name for neighbour in path.parent.iterdir()])
    except OSError as error:
        return f" Its folder {path.parent} cannot be listed ({error.strerror})."


def _parse_line(line: str) -> Example:
    """Return the example a line of JSON describes."""
    data = _parse_json(line)
    if not isinstance(data, dict):
        raise InputError(f"received {shown(data)} ({kind_of(data)}); expected a JSON object. Write {_LINE_FORMAT}.")
    return example_of(data)


def example_of(data: Mapping[str, Any]) -> Example:
    """Return the example that named values describe.

    Args:
        data: ``prompt`` and ``completion``; ``choices`` and ``answer_index``; or, where there is no completion,
            ``messages``. Names unlike these are ignored.

    Returns:
        The example.

    Raises:
        InputError: A value is missing or wrong, or a name is nearly one of these.
    """
    for name in data:
        if name not in _FIELDS and (close := difflib.get_close_matches(name.lower(), _FIELDS, n=1, cutoff=_SLIP)):
            raise InputError(
                f"unknown field {shown(name)}; expected {', '.join(_FIELDS)} (names unlike these are ignored). "
                f"Did you mean {close[0]!r}? Rename or remove it."
            )
    given = {name: data[name] for name in _FIELDS if data.get(name) is not None}
    if isinstance(given.get("prompt"), list) or (data.get("messages") is not None and set(given) <= {"prompt"}):
        return _conversation(given | {"messages": data.get("messages")})
    if isinstance(given.get("choices"), list):
        given["choices"] = tuple(given["choices"])
    if "completion" not in given and "choices" in given:
        given["completion"] = right_choice(given["choices"], given.get("answer_index"))
    others = [name for name in data if name not in _FIELDS]
    for name in ("prompt", "completion"):
        if name not in given:
            raise InputError(
                f"field {name!r} is missing or null (received {shown(list(data)) if data else 'no fields'}); "
                f"expected a string.{did_you_mean(name, others)} Write {_LINE_FORMAT}."
            )
    return Example(**given)


def _parse_json(line: str) -> Any:
    """Parse strictly: no NaN, no Infinity, no repeated names.

    Returns:
        The parsed value.

    Raises:
        InputError: It is no JSON, or not strictly.
    """
    try:
        return json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    except json.JSONDecodeError as error:
        raise InputError(
            f"malformed JSON at column {error.colno} ({error.msg}), received {shown(line.strip())}; expected "
            f"one whole JSON object on one line. Write {_LINE_FORMAT}."
        ) from error
    except InputError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer of thousands of digits
        raise InputError(
            f"JSON that Python refuses ({error}), received {shown(line.strip())}; expected a flat object. "
            f"Write {_LINE_FORMAT}."
        ) from error


def _refuse_constant(name: str) -> None:
    raise InputError(f"received {name}, which is not JSON; expected strings and one integer. Remove it.")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise InputError(f"field {shown(name)} appears twice; expected it once. Remove one of the two.")
        data[name] = value
    return data
