"""What the model is asked and what it should answer: one example, and sets of them."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steerscope.errors import InputError

# Bounds depth as well as length: a hostile line may nest deeper than plain repr can follow.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Example:
    """A prompt with its completion and, where the answer is one of several, all of them.

    ``completion`` is appended to ``prompt`` as it stands (write the leading space if there is one).
    With ``choices`` the completion is ``choices[answer_index]``. With ``messages``, pairs of role and text, the prompt
    is a conversation: a chat template has to write it before a model reads it, and ``prompt`` is what it is called by.

    Raises:
        InputError: A text is empty, not a string or not valid Unicode; ``choices`` and ``answer_index`` do
            not come together; fewer than two or repeated choices; ``answer_index`` is out of range;
            ``completion`` is not the right choice.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    messages: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("completion", self.completion)
        if self.choices is None and self.answer_index is None:
            return
        right = right_choice(self.choices, self.answer_index)
        if self.completion != right:
            raise InputError(
                f"completion is {shown(self.completion)}, but choices[{self.answer_index}] is {shown(right)}; "
                "expected the two to be equal, spaces included. Correct one of them."
            )

    def content_hash(self, seed: int = 0) -> str:
        """Return a hash of the content and ``seed``: what decides splits, whatever the order of a file."""
        key = json.dumps([seed, self.prompt, self.completion, self.choices], allow_nan=False)
        return hashlib.sha256(key.encode("utf-8")).hexdigest()


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
            f"all {len(kept)} examples have the completion {shown(kept[0].completion)}; expected at least two "
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


def shown(value: object) -> str:
    """Return ``repr`` of a value received, cut where a whole line would drown the message."""
    return _REPR.repr(value)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)} ({kind_of(value)}); expected a string. Put it in quotes.")
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


def kind_of(value: object) -> str:
    """Name a type as JSON would."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "integer", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def right_choice(choices: object, answer_index: object) -> str:
    """Check ``choices`` and ``answer_index`` against each other and return the right choice.

    Args:
        choices: A tuple of different texts, if all is well.
        answer_index: Which of them is right, counted from 0.

    Returns:
        The choice at ``answer_index``.

    Raises:
        InputError: They are something else.
    """
    if choices is None:
        raise InputError(
            f"answer_index is {shown(answer_index)} but there are no choices; expected both or neither. "
            "Add choices or remove answer_index."
        )
    if not isinstance(choices, tuple):
        raise InputError(
            f"choices is {shown(choices)} ({kind_of(choices)}); expected a list of strings (a tuple in Python). "
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
                f"choices[{seen[choice]}] and choices[{position}] are both {shown(choice)}; expected different "
                "ones. Remove the repeated choice."
            )
    if answer_index is None:
        raise InputError(
            f"there are {len(choices)} choices but no answer_index; expected both or neither. "
            "Add answer_index, the position of the right choice counted from 0."
        )
    if type(answer_index) is not int:
        raise InputError(
            f"answer_index is {shown(answer_index)} ({kind_of(answer_index)}); expected an integer from 0 to "
            f"{len(choices) - 1}. Give the position of the right choice, not its text."
        )
    if not 0 <= answer_index < len(choices):
        raise InputError(
            f"answer_index is {shown(answer_index)} for {len(choices)} choices; expected 0 to "
            f"{len(choices) - 1}. Count the choices from 0."
        )
    right: str = choices[answer_index]
    return right


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
            f"{prompts} with different answers, which no model can all give: {shown(example.prompt)} is "
            f"answered {shown(other.completion)} in example {other_number} and {shown(example.completion)} in "
            f"example {number} (counted from 1)."
        )
