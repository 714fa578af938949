"""Tasks whose answers are generated and read: what one example is, and how its parts are kept apart."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from steerscope.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from steerscope.experiments.tasks import Split

Row = Mapping[str, Any]
# Gives the rows of a part, each with the words that name it in a message ("boolq-train.jsonl.gz, line 7").
RowSource = Callable[[str], Iterable[tuple[str, Row]]]

PARTS = ("train", "validation", "test")
# Most examples of a part that a generated task makes.
MOST_GENERATED = 10**6
# Where a task has no official validation part, so much of train is cut off to choose settings on. The cut does not
# depend on a run's seed: runs with different seeds choose on the same examples.
VALIDATION_SHARE = 0.1
_CUT = "validation cut 0"


@dataclass(frozen=True)
class AnswerExample:
    """A prompt, the completion to learn, and the answer it holds.

    Attributes:
        prompt: What the model is given.
        completion: What it should write, answer phrase included; the end-of-sequence token follows it.
        answer: The right answer in the form that the task's parser returns.
        options: Texts of the options where the question lists some, in order.
        choices: Completions whose likelihoods are compared, or ``None`` for open answers.
        answer_index: Which of ``choices`` is right, or ``None``.
        group: Examples of one group (one passage, twins of one sentence) never stand on both sides of a cut.
        content: What makes two examples the same question.
    """

    prompt: str
    completion: str
    answer: str
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    group: str = ""
    content: str = ""

    @property
    def key(self) -> str:
        """Hash of prompt and answer: names the example in files of generations."""
        return _hash(self.prompt, self.answer)[:16]


@dataclass(frozen=True)
class AnswerForm:
    """How one task's rows become examples and how its generations are read; ``formats/`` has one file per task.

    Attributes:
        name: The task's name, and the stem of its files: ``<name>-<part>.jsonl.gz``.
        description: One sentence: what is asked, and what an answer looks like.
        build: Makes an example of a row; may raise what wrong rows raise.
        parse: Reads a generation: ``parse(text, example)`` is an answer or ``None``.
        same: Whether two answers are equal.
        max_new_tokens: How long a generation may get.
        official: The parts that are published with labels; ``test`` of a task without one is its validation part.
        source: Where the task comes from.
    """

    name: str
    description: str
    build: Callable[[Row], AnswerExample]
    parse: Callable[[str, AnswerExample], str | None]
    max_new_tokens: int
    official: tuple[str, ...]
    source: str
    same: Callable[[str, str], bool] = str.__eq__


class AnswerTask(Protocol):
    """What training and evaluation need of a task."""

    @property
    def form(self) -> AnswerForm:
        """Templates, parser and limits."""

    @property
    def is_generated(self) -> bool:
        """Whether examples are made as many as are asked for, so that none need ever be repeated."""

    def split(self, split: Split, n: int | None = None, seed: int = 0) -> list[AnswerExample]:
        """Return ``n`` examples of one part (``None``: all), in an order that their content and ``seed`` decide.

        The parts share no question. The first ``n`` of a longer draw with the same seed are the shorter draw.

        Raises:
            InputError: Rows are missing or wrong, or the part has fewer than ``n``.
        """


@dataclass(frozen=True)
class RowsTask:
    """A task read from rows: official parts where they exist, cut by content where they do not.

    Official test rows are kept as they are. A question that also stands in the test part is dropped from validation,
    and one that stands in either is dropped from train: published parts of some tasks overlap.

    Attributes:
        form: Templates, parser and limits.
        rows: Where rows come from.
    """

    is_generated: ClassVar[bool] = False

    form: AnswerForm
    rows: RowSource
    _parts: dict[str, list[AnswerExample]] = field(default_factory=dict, repr=False, compare=False)

    def split(self, split: Split, n: int | None = None, seed: int = 0) -> list[AnswerExample]:
        """Return examples of one part; see :class:`AnswerTask`.

        Cost: reads the part, and for train and validation the parts above it, once.
        """
        check_part(split)
        pool = self._part(split)
        if not pool:
            raise InputError(
                f"task {self.form.name!r} has no {split} examples left after those that stand in another part, or in "
                "no tenth of a small train part, are taken out. Give more rows."
            )
        check_count(n, len(pool), f"{split} examples of {self.form.name}")
        return sorted(pool, key=lambda one: _hash(str(seed), one.prompt, one.completion))[:n]

    def _part(self, part: str) -> list[AnswerExample]:
        if part not in self._parts:
            self._parts[part] = self._make(part)
        return self._parts[part]

    def _make(self, part: str) -> list[AnswerExample]:
        official = self.form.official
        if part == "test":
            return self._read("test" if "test" in official else "validation")
        taken = {one.content for one in self._part("test")}
        has_validation = {"validation", "test"} <= set(official)
        if part == "validation" and has_validation:
            return [one for one in _unique(self._read("validation")) if one.content not in taken]
        train = [one for one in _unique(self._read("train")) if one.content not in taken]
        if has_validation:
            chosen_on = {one.content for one in self._part("validation")}
            return [one for one in train if one.content not in chosen_on]
        return [one for one in train if is_cut_off(one) == (part == "validation")]

    def _read(self, part: str) -> list[AnswerExample]:
        found = []
        for where, row in self.rows(part):
            try:
                found.append(self.form.build(row))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
                raise InputError(
                    f"{where} is no row of task {self.form.name!r}: {reason}. Correct or remove that row."
                ) from error
        if not found:
            raise InputError(f"the {part} part of task {self.form.name!r} has no rows. Get its file again.")
        return found


def majority(examples: Sequence[AnswerExample]) -> tuple[str, float]:
    """Return the most frequent answer and the share of examples it is right for: what a constant can reach.

    Counted on the very examples that are evaluated, so it is the best constant in hindsight.
    """
    counts = Counter(example.answer for example in examples)
    answer, times = max(counts.items(), key=lambda item: (item[1], item[0]))
    return answer, times / len(examples)


def fingerprint(examples: Sequence[AnswerExample]) -> str:
    """Return a hash of a set of examples, the same in any order: two results with one hash answered one test."""
    return _hash(*sorted(_hash(one.prompt, one.completion, one.answer) for one in examples))[:16]


def is_cut_off(example: AnswerExample) -> bool:
    """Return whether a training example belongs to the slice that stands in for a validation part."""
    place = int(_hash(_CUT, example.group or example.content)[:16], 16) / 16**16
    return place < VALIDATION_SHARE


def check_part(part: object) -> None:
    """Refuse an unknown part.

    Raises:
        InputError: It is none of :data:`PARTS`.
    """
    if part not in PARTS:
        raise InputError(f"[[split]] is {part!r}; expected {', '.join(PARTS)}.{did_you_mean(str(part), list(PARTS))}")


def check_count(n: object, available: int, what: str) -> None:
    """Refuse a number of examples that cannot be had.

    Raises:
        InputError: ``n`` is not ``None`` and not from 1 to ``available``.
    """
    if n is not None and (type(n) is not int or not 1 <= n <= available):
        raise InputError(f"asked for {n} {what}; expected 1 to {available:,}. Ask for fewer.")


def _unique(examples: list[AnswerExample]) -> list[AnswerExample]:
    return list(dict.fromkeys(examples))


def _hash(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
