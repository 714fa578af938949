"""Fields of a row, checked: what is wrong is said in words, with no default."""

from __future__ import annotations

from steerscope.errors import shortened
from steerscope.experiments.tasks.task import Row, TaskExample, folded

LETTERS = "ABCDEFGHIJ"


def text(row: Row, name: str) -> str:
    """Return a field that must be a text with something in it.

    Args:
        row: One row of a data set.
        name: Name of the field.

    Returns:
        The text as it is.

    Raises:
        KeyError: It is missing.
        ValueError: It is not a text, or it is blank.
    """
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {shortened(repr(value))}, expected a text")
    return value


def options(row: Row, least: int = 2, most: int = len(LETTERS)) -> tuple[str, ...]:
    """Return ``choices``, which must be a list of texts.

    Args:
        row: One row of a data set.
        least: Fewest choices.
        most: Most choices.

    Returns:
        The choices without white space around them.

    Raises:
        KeyError: It is missing.
        ValueError: It is not a list of ``least`` to ``most`` texts.
    """
    value = row["choices"]
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError(f"choices is {shortened(repr(value))}, expected a list of texts")
    if not least <= len(value) <= most:
        raise ValueError(f"choices has {len(value)} entries, expected {least} to {most}")
    return tuple(one.strip() for one in value)


def answer_index(row: Row, count: int) -> int:
    """Return ``answer_index``, which must point at one of ``count`` choices.

    Args:
        row: One row of a data set.
        count: Number of choices of the row.

    Returns:
        An index, from 0.

    Raises:
        KeyError: It is missing.
        ValueError: It is not an integer from 0 to ``count - 1``.
    """
    value = row["answer_index"]
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"answer_index is {shortened(repr(value))}, expected an integer from 0 to {count - 1}")
    return value


def lettered(choices: tuple[str, ...], form: str = "{}. {}") -> str:
    """Return the options one per line, ``A. text`` unless ``form`` says otherwise.

    Args:
        choices: Options in the order in which they are shown.
        form: Format of one line; it gets the letter and the option.

    Returns:
        Lines without a line break at the end.

    Example:
        >>> print(lettered(("red", "blue")))
        A. red
        B. blue
    """
    return "\n".join(form.format(label, one) for label, one in zip(LETTERS, choices, strict=False))


def letters(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the completions that name an option after ``Answer:``, one token each with most tokenizers."""
    return tuple(f" {label}" for label in LETTERS[: len(choices)])


def lettered_question(row: Row) -> TaskExample:
    """Return a row with options as a question that is answered by the letter of one."""
    question, choices = text(row, "question").strip(), options(row)
    right = answer_index(row, len(choices))
    return TaskExample(
        f"Question: {question}\n{lettered(choices)}\nAnswer:",
        letters(choices)[right],
        letters(choices),
        right,
        answer=LETTERS[right],
        options=choices,
        content=folded(question),
    )
