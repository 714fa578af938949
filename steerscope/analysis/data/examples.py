"""What the model is asked and what it should answer: one example, and files of them."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerscope.errors import InputError, did_you_mean

_FIELDS = ("prompt", "completion", "choices", "answer_index")
# Nearer than this to a field's name, another name is a slip ("promt"); "source_index" or "prompt_id" are not.
_SLIP = 0.85
_LINE_FORMAT = (
    '{"prompt": "...", "completion": "..."}, for multiple choice with "choices": ["...", "..."] and "answer_index": 0'
)

# Bounds depth as well as length: a hostile line may nest deeper than plain repr can follow.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Example:
    """A prompt with its completion and, where the answer is one of several, all of them.

    ``completion`` is appended to ``prompt`` as it stands (write the leading space if there is one).
    With ``choices`` the completion is ``choices[answer_index]``.

    Raises:
        InputError: A text is empty, not a string or not valid Unicode; ``choices`` and ``answer_index`` do
            not come together; fewer than two or repeated choices; ``answer_index`` is out of range;
            ``completion`` is not the right choice.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("completion", self.completion)
        if self.choices is None and self.answer_index is None:
            return
        right = _right_choice(self.choices, self.answer_index)
        if self.completion != right:
            raise InputError(
                f"completion is {_show(self.completion)}, but choices[{self.answer_index}] is {_show(right)}; "
                "expected the two to be equal, spaces included. Correct one of them."
            )

    def content_hash(self, seed: int = 0) -> str:
        """Return a hash of the content and ``seed``: what decides splits, whatever the order of a file."""
        key = json.dumps([seed, self.prompt, self.completion, self.choices], allow_nan=False)
        return hashlib.sha256(key.encode("utf-8")).hexdigest()


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
    examples: list[Example] = []
    first_line: dict[bool, int] = {}
    for number, line in text_lines(path):
        try:
            example = _parse_line(line)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        first_line.setdefault(example.choices is not None, number)
        if len(first_line) == 2:
            raise InputError(
                f"{path}, line {number}: the file mixes two sorts of examples: line {first_line[True]} is the "
                f"first with choices, line {first_line[False]} the first without; expected one sort. "
                'Give every line "choices" and "answer_index", or split the file in two.'
            )
        examples.append(example)
    if not examples:
        raise InputError(
            f"{path}, line 1: the file holds no examples (it is empty or blank); expected one JSON object per "
            f"line. Write lines like {_LINE_FORMAT}."
        )
    return examples


def check_examples(examples: Sequence[Example], *, minimum: int) -> tuple[list[Example], list[str]]:
    """Refuse sets of examples nothing can be learned from, and remove exact duplicates.

    Examples are counted from 1 in messages, as lines of a file without blank lines are.

    Args:
        examples: All with choices or all without.
        minimum: How many different examples the caller needs, at least 1.

    Returns:
        The examples in their order without exact duplicates, and the sentences to warn the reader with:
        duplicates removed, and prompts that appear with different answers (which are kept; with choices
        this means the same set of choices too).

    Raises:
        InputError: Sorts are mixed, too few different examples remain, or every answer is the same.

    Cost: linear in the size of the examples.
    """
    if type(minimum) is not int or minimum < 1:
        raise InputError(f"minimum is {minimum!r}; expected an integer of at least 1. Pass how many you need.")
    first_index: dict[bool, int] = {}
    for number, example in enumerate(examples, start=1):
        first_index.setdefault(example.choices is not None, number)
    if len(first_index) == 2:
        raise InputError(
            f"the examples are of two sorts: example {first_index[True]} is the first with choices, "
            f"example {first_index[False]} the first without (counted from 1); expected one sort. "
            "Give every example choices, or none."
        )

    # An Example is hashable, so a dictionary keeps the first of each and the place where it stood.
    first_seen: dict[Example, int] = {}
    repeats: list[tuple[int, int]] = []
    for number, example in enumerate(examples, start=1):
        first = first_seen.setdefault(example, number)
        if first != number:
            repeats.append((number, first))
    kept = list(first_seen)

    if len(kept) < minimum:
        received = f"received {len(examples)} examples"
        if repeats:
            received += f", of which {len(kept)} differ ({_duplicates(len(repeats))} removed)"
        raise InputError(f"{received}; expected at least {minimum}. Add examples or ask for fewer.")
    if len(kept) > 1 and len({example.completion for example in kept}) == 1:
        raise InputError(
            f"all {len(kept)} examples have the completion {_show(kept[0].completion)}; expected at least two "
            "different answers, since a constant would be right everywhere and nothing about the prompts can "
            "be learned. Add examples with other answers."
        )

    warnings = []
    if repeats:
        number, first = repeats[0]
        warnings.append(
            f"{_duplicates(len(repeats))} removed, {len(kept)} of {len(examples)} examples left; the first is "
            f"example {number}, equal to example {first} (counted from 1)."
        )
    warnings.extend(_contradictions(first_seen))
    return kept, warnings


def content_order(examples: Sequence[Example], seed: int) -> list[int]:
    """Return the indices of ``examples`` in a random order that depends on their content and ``seed`` alone.

    The same examples in a differently ordered file give the same sequence of contents, so a split taken
    from this order is a property of the data set. Equal hashes mean equal contents.

    Args:
        examples: Any number.
        seed: Another seed, another order.

    Returns:
        Every index once.

    Cost: one hash per example.
    """
    hashes = [example.content_hash(seed) for example in examples]
    return sorted(range(len(hashes)), key=hashes.__getitem__)


def _show(value: object) -> str:
    """Return ``repr`` of a value received, cut where a whole line would drown the message."""
    return _REPR.repr(value)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} is {_show(value)} ({_kind(value)}); expected a string. Put it in quotes.")
    if not value:
        raise InputError(f"{name} is empty; expected at least one character. Fill it in or drop the example.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair ("\ud83d"), which no tokenizer can read.
        raise InputError(
            f"{name} holds {value[error.start]!r} at character {error.start}, half of a surrogate pair; "
            "expected valid Unicode. Write the whole character or remove it."
        ) from error


def _kind(value: object) -> str:
    """Name a type as JSON would.

    Returns:
        The word for a message.
    """
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "integer", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _right_choice(choices: object, answer_index: object) -> str:
    """Check ``choices`` and ``answer_index`` against each other and return the right choice.

    Returns:
        The choice at ``answer_index``.
    """
    if choices is None:
        raise InputError(
            f"answer_index is {_show(answer_index)} but there are no choices; expected both or neither. "
            "Add choices or remove answer_index."
        )
    if not isinstance(choices, tuple):
        raise InputError(
            f"choices is {_show(choices)} ({_kind(choices)}); expected a list of strings (a tuple in Python). "
            "List the choices one by one."
        )
    for position, choice in enumerate(choices):
        _check_text(f"choices[{position}]", choice)
    if len(choices) < 2:
        raise InputError(f"choices has {len(choices)} entries; expected at least 2. Add the other answers.")
    seen: dict[str, int] = {}
    for position, choice in enumerate(choices):
        if seen.setdefault(choice, position) != position:
            raise InputError(
                f"choices[{seen[choice]}] and choices[{position}] are both {_show(choice)}; expected different "
                "ones. Remove the repeated choice."
            )
    if answer_index is None:
        raise InputError(
            f"there are {len(choices)} choices but no answer_index; expected both or neither. "
            "Add answer_index, the position of the right choice counted from 0."
        )
    if type(answer_index) is not int:
        raise InputError(
            f"answer_index is {_show(answer_index)} ({_kind(answer_index)}); expected an integer from 0 to "
            f"{len(choices) - 1}. Give the position of the right choice, not its text."
        )
    if not 0 <= answer_index < len(choices):
        raise InputError(
            f"answer_index is {_show(answer_index)} for {len(choices)} choices; expected 0 to "
            f"{len(choices) - 1}. Count the choices from 0."
        )
    right: str = choices[answer_index]
    return right


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is not blank, decompressed and decoded.

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
                if content.strip():
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
        raise InputError(f"received {_show(data)} ({_kind(data)}); expected a JSON object. Write {_LINE_FORMAT}.")
    for name in data:
        if name not in _FIELDS and (close := difflib.get_close_matches(name.lower(), _FIELDS, n=1, cutoff=_SLIP)):
            raise InputError(
                f"unknown field {_show(name)}; expected {', '.join(_FIELDS)} (names unlike these are ignored). "
                f"Did you mean {close[0]!r}? Rename or remove it."
            )
    given = {name: data[name] for name in _FIELDS if data.get(name) is not None}
    if isinstance(given.get("choices"), list):
        given["choices"] = tuple(given["choices"])
    if "completion" not in given and "choices" in given:
        given["completion"] = _right_choice(given["choices"], given.get("answer_index"))
    others = [name for name in data if name not in _FIELDS]
    for name in ("prompt", "completion"):
        if name not in given:
            raise InputError(
                f"field {name!r} is missing or null (received {_show(list(data)) if data else 'no fields'}); "
                f"expected a string.{did_you_mean(name, others)} Write {_LINE_FORMAT}."
            )
    return Example(**given)


def _parse_json(line: str) -> Any:
    """Parse strictly: no NaN, no Infinity, no repeated names.

    Returns:
        The parsed value.
    """
    try:
        return json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    except json.JSONDecodeError as error:
        raise InputError(
            f"malformed JSON at column {error.colno} ({error.msg}), received {_show(line.strip())}; expected "
            f"one whole JSON object on one line. Write {_LINE_FORMAT}."
        ) from error
    except InputError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer of thousands of digits
        raise InputError(
            f"JSON that Python refuses ({error}), received {_show(line.strip())}; expected a flat object. "
            f"Write {_LINE_FORMAT}."
        ) from error


def _refuse_constant(name: str) -> None:
    raise InputError(f"received {name}, which is not JSON; expected strings and one integer. Remove it.")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise InputError(f"field {_show(name)} appears twice; expected it once. Remove one of the two.")
        data[name] = value
    return data


def _duplicates(count: int) -> str:
    return "1 exact duplicate" if count == 1 else f"{count} exact duplicates"


def _contradictions(first_seen: dict[Example, int]) -> Iterable[str]:
    """Yield one sentence when equal questions have different answers, with the first pair."""
    answers: dict[object, tuple[Example, int]] = {}
    contradicted: dict[object, tuple[Example, int]] = {}
    for example, number in first_seen.items():
        question: object = (example.prompt, None if example.choices is None else frozenset(example.choices))
        other, _ = answers.setdefault(question, (example, number))
        if other.completion != example.completion:
            contradicted.setdefault(question, (example, number))
    if contradicted:
        question, (example, number) = next(iter(contradicted.items()))
        other, other_number = answers[question]
        prompts = "1 prompt appears" if len(contradicted) == 1 else f"{len(contradicted)} prompts appear"
        yield (
            f"{prompts} with different answers, which no model can all give: {_show(example.prompt)} is "
            f"answered {_show(other.completion)} in example {other_number} and {_show(example.completion)} in "
            f"example {number} (counted from 1)."
        )
