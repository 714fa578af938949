"""A task made of a user's own examples: one file, cut by content into parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from steerscope.analysis.data.examples import Example, check_examples
from steerscope.analysis.data.files import read_examples
from steerscope.errors import InputError
from steerscope.experiments.tasks.parsing import chosen
from steerscope.experiments.tasks.task import PARTS, Split, TaskExample, TaskForm, check_part, drawn, place_of

# How a file is cut, by a hash of each prompt: the same for every command and seed.
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
_CUT = "parts of a user's file"


@dataclass(frozen=True)
class FileTask:
    """Examples of a user's own, for every command that takes a task.

    A hash of the prompt, case and white space folded, decides the part of an example (:data:`SHARES`), so equal prompts
    are in one part. Exact duplicates are left out. With choices a generation is right if it is the right choice, or
    starts with it and with no other; without, if it is the completion (white space around either aside).

    Attributes:
        name: What results call it.
        examples: Without exact duplicates, in any order.
        warnings: What a reader of results has to know about the examples.
    """

    is_generated: ClassVar[bool] = False

    name: str
    examples: tuple[TaskExample, ...]
    warnings: tuple[str, ...] = ()
    _parts: dict[str, list[TaskExample]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts: dict[str, list[TaskExample]] = {part: [] for part in PARTS}
        for example in self.examples:
            parts[part_of(example)].append(example)
        object.__setattr__(self, "_parts", parts)

    @classmethod
    def read(cls, path: str | Path) -> FileTask:
        """Read a file of examples, or a data set; see :func:`~steerscope.analysis.data.files.read_examples`.

        Returns:
            The task, called as the file is.

        Raises:
            InputError: The file cannot be read, or all its answers are the same.
        """
        return cls.of(Path(path).name, read_examples(path))

    @classmethod
    def of(cls, name: str, examples: list[Example]) -> FileTask:
        """Make a task of examples.

        Args:
            name: What results call it.
            examples: All with choices, or all without.

        Returns:
            The task; its ``warnings`` say what is odd about the examples.

        Raises:
            InputError: Two sorts of examples, or one answer to all of them.
        """
        kept, warnings = check_examples(examples, minimum=1)
        return cls(name, tuple(map(_task_example, kept)), tuple(warnings))

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""
        return f"{self.name}: {len(self.examples)} examples, {'with' if self._has_choices else 'without'} choices."

    @property
    def form(self) -> TaskForm:
        """Parser and limits."""
        return TaskForm(
            name=self.name,
            description=self.description,
            build=lambda row: _task_example(Example(**row)),
            parse=_choice if self._has_choices else _whole,
            max_new_tokens=None,
            official=("train",),
            source=self.name,
            ends=not self._has_choices,
            samples=self.examples,
        )

    @property
    def _has_choices(self) -> bool:
        return self.examples[0].choices is not None

    def split(self, part: Split, n: int | None = None, seed: int = 0) -> list[TaskExample]:
        """Return examples of one part; see :class:`~steerscope.experiments.tasks.task.Task`.

        Args:
            part: ``train``, ``validation`` or ``test``.
            n: How many examples; without it all of the part.
            seed: Another seed, another order.

        Returns:
            Examples that are in no other part.

        Raises:
            InputError: No such part, one that is too small, or conversations that no chat template writes yet.
        """
        check_part(part)
        if self.examples[0].messages is not None:
            raise InputError(
                f"the examples of {self.name} are conversations, which the model's chat template has to write. Add "
                "[[chat_template=True]] (in Python: chat_task(task, tokenizer))."
            )
        self.require(f"a {part} part", **{part: 1})
        return drawn(self._parts[part], n, seed, f"{part} examples of {self.name}")

    def require(self, purpose: str, **least: int) -> None:
        """Refuse a file whose parts are too small, and say how many prompts it would take.

        Args:
            purpose: What they are for, in a few words.
            **least: How many different examples each part needs.

        Raises:
            InputError: A part has fewer.
        """
        short = {part: count for part, count in least.items() if len(self._parts[part]) < count}
        if not short:
            return
        # A part's size is random: so many prompts give it its least, and two standard deviations more.
        prompts = max(math.ceil((count + 2 * math.sqrt(count) + 2) / SHARES[part]) for part, count in short.items())
        found = ", ".join(
            f"{len(self._parts[part])} to {part}, where {count} are needed" for part, count in short.items()
        )
        raise InputError(
            f"{self.name} has {len(self.examples)} different examples, too few for {purpose}: a cut by content "
            f"({', '.join(f'{share:.0%} {part}' for part, share in SHARES.items())}) gives {found}. Give at least "
            f"{prompts} different prompts."
        )


def part_of(example: TaskExample) -> str:
    """Return the part that an example's prompt belongs to."""
    place, upper = place_of(_CUT, example.content), 0.0
    for part, share in SHARES.items():
        upper += share
        if place < upper:
            return part
    return "test"


def _task_example(example: Example) -> TaskExample:
    return TaskExample(
        example.prompt,
        example.completion,
        example.choices,
        example.answer_index,
        example.messages,
        answer=example.completion.strip(),
    )


def _choice(generation: str, example: TaskExample) -> str | None:
    return chosen(generation, example.choices or ())


def _whole(generation: str, example: TaskExample) -> str | None:
    return generation.strip() or None
