"""Edits: which letter of a row of letters occurs twice."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from steerscope.experiments.tasks.formats.generated import GeneratedTask, row_form
from steerscope.experiments.tasks.generator import LETTERS, Generator, check_integer, several
from steerscope.experiments.tasks.task import TaskExample, folded

_CHOICES = tuple(f" {letter}" for letter in LETTERS)


@dataclass(frozen=True)
class Twice(Generator):
    """``k x q b x twice: x``: all other letters occur once.

    Args:
        length: How many letters, 3 to 20.
    """

    name: ClassVar[str] = "twice"
    answers: ClassVar[tuple[str, ...]] = LETTERS

    length: int = 6

    def __post_init__(self) -> None:
        check_integer("length", self.length, 3, 20)

    @property
    def description(self) -> str:
        """One sentence: how large questions are."""
        return f"There are {self.length} letters."

    def one(self, rng: random.Random) -> tuple[str, int]:
        """Return random letters of which two are the same, and the index of that one in the alphabet."""
        letters = several(rng, LETTERS, self.length - 1)
        twice = letters[0]
        row = [
            (letters + [twice])[int(place)] for place in several(rng, tuple(map(str, range(self.length))), self.length)
        ]
        return " ".join(row), LETTERS.index(twice)


def _twice(row: str, index: int) -> TaskExample:
    """A letter after a colon and a space is one token with most tokenizers."""
    return TaskExample(f"{row} twice:", _CHOICES[index], _CHOICES, index, answer=LETTERS[index], content=folded(row))


def _letter(generation: str) -> str | None:
    written = generation.strip()
    return written if written in LETTERS else None


FORM = row_form(
    "twice",
    "Twice: which letter of a row occurs twice; the answer is a letter.",
    template=_twice,
    answers=len(LETTERS),
    parse=_letter,
)
GENERATED = (GeneratedTask(FORM, Twice(), _twice),)
