"""What a task is: examples, how they are read, and parts that share no question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from steerscope.analysis.data.examples import Example
from steerscope.analysis.provenance import hash_of
from steerscope.errors import InputError, did_you_mean

Split = Literal["train", "validation", "test"]
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
class TaskExample(Example):
    """A prompt with its completion (and choices), and the answer that a parser has to find in a generation.

    Attributes:
        answer: The right answer in the form that the task's parser returns.
        options: Texts of the options where the question lists some, in order.
        group: Examples of one group (one passage, twins of one sentence) never stand on both sides of a cut.
        content: What makes two examples the same question; the prompt unless given, case and white space folded.
        drawn: Says that a registered task drew just this example
            (:func:`~steerscope.analysis.evidence.drawn_mark`); whatever changes the example makes it void.
    """

    answer: str = field(kw_only=True)
    options: tuple[str, ...] = field(default=(), kw_only=True)
    group: str = field(default="", kw_only=True)
    content: str = field(default="", kw_only=True)
    drawn: str = field(default="", kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.content:
            object.__setattr__(self, "content", folded(self.prompt))

    @property
    def key(self) -> str:
        """Hash of prompt and answer: names the example in files of generations."""
        return hash_of(self.prompt, self.answer)[:16]


@dataclass(frozen=True)
class TaskForm:
    """How one task's rows become examples and how they are read; ``formats/`` has one file per task.

    Attributes:
        name: The task's name.
        description: One sentence: what is asked, and what an answer looks like.
        build: Makes an example of a row; may raise what wrong rows raise.
        parse: Reads a generation: ``parse(text, example)`` is an answer or ``None``.
        max_new_tokens: How long a generation may get; ``None`` for as many tokens as the longest answer takes, see
            :func:`~steerscope.experiments.tasks.supervised.answer_tokens`.
        official: The parts that are published with labels; ``test`` of a task without one is its validation part.
        source: Where the task comes from.
        same: Whether two answers are equal.
        ends: Whether an end-of-sequence token is trained and expected after the completion. Where it is not, answers
            are one token each; with a tokenizer that takes several for one of them, the end is trained all the same,
            since the model then has to learn where the answer stops.
        keeps: Whether a row is used.
        samples: Examples that show how long answers get; where there are none, those at hand do.
    """

    name: str
    description: str
    build: Callable[[Row], TaskExample]
    parse: Callable[[str, TaskExample], str | None]
    max_new_tokens: int | None
    official: tuple[str, ...]
    source: str
    same: Callable[[str, str], bool] = str.__eq__
    ends: bool = True
    keeps: Callable[[Row], bool] = lambda row: True
    samples: tuple[TaskExample, ...] = ()


class Task(Protocol):
    """What ranking, validation, training and evaluation need of a task: the same examples for all of them."""

    @property
    def name(self) -> str:
        """The name that results keep."""

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""

    @property
    def form(self) -> TaskForm:
        """Parser and limits."""

    @property
    def is_generated(self) -> bool:
        """Whether examples are made as many as are asked for, so that none need ever be repeated."""

    def split(self, part: Split, n: int | None = None, seed: int = 0) -> list[TaskExample]:
        """Return ``n`` examples of one part (``None``: all), in an order that their content and ``seed`` decide.

        The parts share no question. The first ``n`` of a longer draw with the same seed are the shorter draw.

        Args:
            part: ``train``, ``validation`` or ``test``.
            n: How many, at least 1.
            seed: Another seed, another order.

        Returns:
            Examples, each once.

        Raises:
            InputError: Rows are missing or wrong, or the part has fewer than ``n``.
        """


@dataclass(frozen=True)
class RowsTask:
    """A task read from rows: official parts where they exist, cut by content where they do not.

    Official test rows are kept as they are. A question that is also in the test part is dropped from validation,
    and one that is in either is dropped from train: published parts of some tasks overlap.

    Attributes:
        form: Templates, parser and limits.
        rows: Where rows come from.
    """

    is_generated: ClassVar[bool] = False

    form: TaskForm
    rows: RowSource
    _parts: dict[str, list[TaskExample]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The name that results keep."""
        return self.form.name

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""
        return self.form.description

    def split(self, part: Split, n: int | None = None, seed: int = 0) -> list[TaskExample]:
        """Return examples of one part; see :class:`Task`.

        Args:
            part: ``train``, ``validation`` or ``test``.
            n: How many examples; without it all of the part.
            seed: Another seed, another order.

        Returns:
            Examples that are in no other part.

        Raises:
            InputError: No such part, or it cannot be read or has too few examples.

        Cost: reads the part, and for train and validation the parts above it, once.
        """
        check_part(part)
        pool = self._part(part)
        if not pool:
            raise InputError(
                f"task {self.name!r} has no {part} examples left after those that stand in another part, or in "
                "no tenth of a small train part, are taken out. Give more rows."
            )
        return drawn(pool, n, seed, f"{part} examples of {self.name}")

    def _part(self, part: str) -> list[TaskExample]:
        if part not in self._parts:
            self._parts[part] = self._make(part)
        return self._parts[part]

    def _make(self, part: str) -> list[TaskExample]:
        official = self.form.official
        if part == "test":
            return self._read("test" if "test" in official else "validation")
        tested = {one.content for one in self._part("test")}
        has_validation = {"validation", "test"} <= set(official)
        found = self._read("validation" if part == "validation" and has_validation else "train")
        found = [one for one in _unique(found) if one.content not in tested]
        if part == "validation":
            return found if has_validation else [one for one in found if is_cut_off(one)]
        chosen_on = {one.content for one in self._part("validation")}
        return [one for one in found if one.content not in chosen_on and (has_validation or not is_cut_off(one))]

    def _read(self, part: str) -> list[TaskExample]:
        found = []
        for where, row in self.rows(part):
            try:
                if self.form.keeps(row):
                    found.append(self.form.build(row))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
                raise InputError(f"{where} is no row of task {self.name!r}: {reason}. Correct or remove it.") from error
        if not found:
            raise InputError(f"the {part} part of task {self.name!r} has no rows. Get its file again.")
        return found


def drawn(pool: Sequence[TaskExample], n: int | None, seed: int, what: str) -> list[TaskExample]:
    """Return the first ``n`` of a pool in an order that content and ``seed`` decide, whatever the pool's own order.

    Tasks that ask the same questions in other words put them in the same order.

    Args:
        pool: Examples to choose from.
        n: How many; without it all.
        seed: Another seed, another order.
        what: What they are, for messages.

    Returns:
        The first ``n`` in that order.

    Raises:
        InputError: There are fewer than ``n``; ``what`` names them.
    """
    check_count(n, len(pool), what)

    def place(one: TaskExample) -> tuple[str, str]:
        return hash_of(str(seed), one.content), hash_of(one.prompt, one.completion)

    return sorted(pool, key=place)[:n]


def at_most(task: Task, part: Split, n: int | None, seed: int) -> list[TaskExample]:
    """Return ``n`` examples of one part, or all of them where the part has fewer.

    Args:
        task: The task.
        part: ``train``, ``validation`` or ``test``.
        n: Most examples; ``None`` for all, or a generated part's usual number.
        seed: Of the draw.

    Returns:
        Between 1 and ``n`` examples.

    Raises:
        InputError: Rows are missing or wrong.
    """
    if task.is_generated or n is None:
        return task.split(part, n, seed)
    check_count(n, MOST_GENERATED, f"{part} examples of {task.name}")
    return task.split(part, None, seed)[:n]


def majority(examples: Sequence[TaskExample]) -> tuple[str, float]:
    """Return the most frequent answer and the share of examples it is right for: what a constant can reach.

    Counted on the very examples that are evaluated, so it is the best constant in hindsight.
    """
    counts = Counter(example.answer for example in examples)
    answer, times = max(counts.items(), key=lambda item: (item[1], item[0]))
    return answer, times / len(examples)


def fingerprint(examples: Sequence[TaskExample]) -> str:
    """Return a hash of a set of examples, the same in any order: two results with one hash answered one test."""
    return hash_of(*sorted(hash_of(one.prompt, one.completion, one.answer) for one in examples))[:16]


def is_cut_off(example: TaskExample) -> bool:
    """Return whether a training example belongs to the slice that stands in for a validation part."""
    return place_of(_CUT, example.group or example.content) < VALIDATION_SHARE


def place_of(*texts: str) -> float:
    """Return a number from 0 to below 1 that a hash of texts decides: what cuts parts."""
    return int(hash_of(*texts)[:16], 16) / 16**16


def folded(*texts: str) -> str:
    """Fold case and white space: texts that differ in nothing else are the same question.

    Returns:
        One text, to be compared with others.

    Example:
        >>> folded("Is it  so?", "Yes")
        'is it so? | yes'
    """
    return " | ".join(" ".join(one.split()).casefold() for one in texts)


def check_part(part: object) -> None:
    """Refuse an unknown part.

    Raises:
        InputError: It is none of :data:`PARTS`.
    """
    if part not in PARTS:
        raise InputError(f"[[split]] is {part!r}; expected {', '.join(PARTS)}.{did_you_mean(str(part), list(PARTS))}")


def check_count(n: object, available: int, what: str) -> None:
    """Refuse a number of examples that cannot be had.

    Args:
        n: What was asked for; ``None`` stands for all.
        available: How many there are.
        what: What they are, for messages.

    Raises:
        InputError: ``n`` is not ``None`` and not from 1 to ``available``.
    """
    if n is not None and (type(n) is not int or not 1 <= n <= available):
        raise InputError(f"asked for {n} {what}; expected 1 to {available:,}. Ask for fewer.")


def _unique(examples: Iterable[TaskExample]) -> list[TaskExample]:
    """Keep the first of those that a model could not tell apart."""
    return list({(one.prompt, one.completion, one.choices): one for one in reversed(list(examples))}.values())[::-1]
