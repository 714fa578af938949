"""Recall: pairs of a letter and a digit, then one of the letters; the answer is its digit. What attention can fetch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from steerscope.experiments.tasks.formats.generated import GeneratedTask, digit_after, row_form
from steerscope.experiments.tasks.generator import LETTERS, Generator, below, check_integer, several
from steerscope.experiments.tasks.task import TaskExample


@dataclass(frozen=True)
class Recall(Generator):
    """``b=3 d=7 a=1 c=9 d=7``: letters differ, digits need not. Naming any of the digits given is right for 1 in 4.

    Args:
        pairs: How many, 2 to 10.
    """

    name: ClassVar[str] = "recall"

    pairs: int = 4

    def __post_init__(self) -> None:
        check_integer("pairs", self.pairs, 2, 10)

    @property
    def description(self) -> str:
        """One sentence: how large questions are."""
        return f"There are {self.pairs} pairs."

    def one(self, rng: random.Random) -> tuple[str, int]:
        """Return random pairs with a key, and the key's digit."""
        keys = several(rng, LETTERS, self.pairs)
        values = [below(rng, 10) for _ in keys]
        wanted = below(rng, self.pairs)
        pairs = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        return f"{pairs} {keys[wanted]}", values[wanted]


def _capital(question: str, value: int) -> TaskExample:
    """``b=3 d=7 a=1 c=9 D=7``: who recalls has to read the letter otherwise."""
    return digit_after(f"{question[:-1]}{question[-1].upper()}=", value, question)


def _plus(question: str, value: int) -> TaskExample:
    """``b=3 d=7 a=1 c=9 d+1=8``: who recalls has to answer otherwise; 0 follows 9."""
    return digit_after(f"{question}+1=", (value + 1) % 10, question)


FORM = row_form("recall", "Recall: which digit was given for a letter; the answer is a digit.")
CAPITAL = row_form(
    "recall_capital",
    "Recall: which digit was given for a letter, asked for by its capital; the answer is a digit.",
    template=_capital,
)
PLUS = row_form(
    "recall_plus", "Recall: which digit follows the one given for a letter; the answer is a digit.", template=_plus
)
GENERATED = (
    GeneratedTask(FORM, Recall()),
    GeneratedTask(CAPITAL, Recall(), _capital),
    GeneratedTask(PLUS, Recall(), _plus),
)
