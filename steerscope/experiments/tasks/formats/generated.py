"""Tasks that are generated from a seed: nothing to download, and as many examples as are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from steerscope.analysis.evidence import drawn_mark
from steerscope.experiments.tasks.formats.fields import answer_index, text
from steerscope.experiments.tasks.generator import DIGITS, Generator
from steerscope.experiments.tasks.parsing import leading_integer
from steerscope.experiments.tasks.task import (
    MOST_GENERATED,
    Row,
    Split,
    TaskExample,
    TaskForm,
    check_count,
    check_part,
    folded,
)

# What "all examples" of a generated part means.
SIZES = {"train": 10_000, "validation": 500, "test": 2_000}
# Makes an example of a question and the index of its answer.
Template = Callable[[str, int], TaskExample]


def digit_after_equals(question: str, value: int) -> TaskExample:
    """No space: after ``=`` most tokenizers have one token for a digit, and two for a space and a digit.

    Args:
        question: Text before the equals sign.
        value: The answer, 0 to 9.

    Returns:
        An example with the ten digits as choices.

    Example:
        >>> one = digit_after_equals("[MAX 3 5]", 5)
        >>> one.prompt, one.completion
        ('[MAX 3 5]=', '5')
    """
    return digit_after(f"{question}=", value, question)


def digit_after(prompt: str, value: int, question: str) -> TaskExample:
    """Return an example whose answer is a digit, right after the prompt; ``question`` is what makes it another one.

    Args:
        prompt: Everything before the answer.
        value: The answer, 0 to 9.
        question: The part of the prompt by which questions are told apart.

    Returns:
        An example with the ten digits as choices.
    """
    return TaskExample(prompt, DIGITS[value], DIGITS, value, answer=DIGITS[value], content=folded(question))


@dataclass(frozen=True)
class GeneratedTask:
    """A task drawn from a seed. ``n`` may be any number here; ``None`` means :data:`SIZES`.

    Attributes:
        form: Parser and limits.
        generator: Draws questions.
        template: Puts a question and its answer into words.
    """

    is_generated: ClassVar[bool] = True

    form: TaskForm
    generator: Generator
    template: Template = digit_after_equals

    @property
    def name(self) -> str:
        """The name that results keep."""
        return self.form.name

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""
        return f"{self.form.description} {self.generator.description}"

    def split(self, part: Split, n: int | None = None, seed: int = 0) -> list[TaskExample]:
        """Return ``n`` generated examples, answers drawn uniformly; see :class:`~steerscope.experiments.tasks.Task`.

        Args:
            part: ``train``, ``validation`` or ``test``.
            n: How many examples; without it the part's usual number.
            seed: Another seed, another draw.

        Returns:
            Different examples, none of which another part can have.
        """
        check_part(part)
        check_count(n, MOST_GENERATED, f"{part} examples of {self.name}")
        drawn = self.generator.draw(part, SIZES[part] if n is None else n, seed)
        examples = [self.template(question, value) for question, value in drawn]
        from steerscope.experiments.tasks.formats import GENERATED  # which imports this file

        if GENERATED.get(self.name) != self:  # another task of that name
            return examples
        return [replace(one, drawn=drawn_mark(self.name, one)) for one in examples]


def row_form(
    name: str,
    description: str,
    *,
    source: str = "generated",
    template: Template = digit_after_equals,
    answers: int = 10,
    parse: Callable[[str], str | None] = leading_integer,
    max_new_tokens: int | None = None,
    ends: bool = False,
) -> TaskForm:
    """Return the form of a generated task, which also reads rows with ``question`` and ``answer_index``.

    Args:
        name: The task's.
        description: One sentence: what is asked, and what an answer looks like.
        source: Where the task comes from.
        template: Puts a question and its answer into words.
        answers: How many answers there are.
        parse: Reads a generation.
        max_new_tokens: How long a generation may get; ``None`` for as many tokens as the longest answer takes.
        ends: Whether an end-of-sequence token is trained after the completion.

    Returns:
        The form, with its template and parser.
    """

    def build(row: Row) -> TaskExample:
        return template(text(row, "question").strip(), answer_index(row, answers))

    return TaskForm(
        name=name,
        description=description,
        build=build,
        parse=lambda generation, example: parse(generation),
        max_new_tokens=max_new_tokens,
        official=("train", "validation", "test"),
        source=source,
        ends=ends,
    )
