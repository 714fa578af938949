"""Compare: the least or the greatest of some digits."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from steerscope.experiments.tasks.formats.generated import GeneratedTask, row_form
from steerscope.experiments.tasks.generator import Generator, below, check_integer

_FUNCTIONS = {"min": min, "max": max}


@dataclass(frozen=True)
class Compare(Generator):
    """``min(7,2,9,4,3)=2`` or ``max(7,2,9,4,3)=9``.

    Args:
        count: How many digits, 2 to 10.
    """

    name: ClassVar[str] = "compare"

    count: int = 5

    def __post_init__(self) -> None:
        check_integer("count", self.count, 2, 10)

    @property
    def description(self) -> str:
        """One sentence: how large questions are."""
        return f"There are {self.count} digits."

    def one(self, rng: random.Random) -> tuple[str, int]:
        """Return a call on random digits, and its value."""
        function = tuple(_FUNCTIONS)[below(rng, len(_FUNCTIONS))]
        digits = [below(rng, 10) for _ in range(self.count)]
        return f"{function}({','.join(map(str, digits))})", _FUNCTIONS[function](digits)


FORM = row_form("compare", "Compare: the least or greatest of some digits; the answer is a digit.")
GENERATED = (GeneratedTask(FORM, Compare()),)
