"""Recall: pairs of a letter and a digit, then one of the letters; the answer is its digit. What attention can fetch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from steerscope.experiments.tasks.formats.generated import GeneratedTask, row_form
from steerscope.experiments.tasks.generator import LETTERS, Generator, below, check_integer, several


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


FORM = row_form("recall", "Recall: which digit was given for a letter; the answer is a digit.")
GENERATED = (GeneratedTask(FORM, Recall()),)
