"""Compare: the least or the greatest of some digits, and what else can be asked of them in the same words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from steerscope.errors import InputError
from steerscope.experiments.tasks.formats.generated import GeneratedTask, row_form
from steerscope.experiments.tasks.generator import Generator, below, check_integer

_FUNCTIONS = ("min", "max")
# What is asked, and how a table says it. All but the first contradict what ``min`` and ``max`` usually mean, so that a
# model that knows it has something to be taught: at the end (another digit for each), or from the word on.
ASKS = {
    "named": "the least or greatest",
    "next": "the digit after the least or greatest, 0 after 9,",
    "other": "the greatest where min is written and the least where max is,",
    "second": "the second least or greatest",
}


@dataclass(frozen=True)
class Compare(Generator):
    """``min(7,2,9,4,3)=2`` or ``max(7,2,9,4,3)=9``.

    Args:
        count: How many digits, 2 to 10.
        asks: One of :data:`ASKS`; the words are the same.
    """

    name: ClassVar[str] = "compare"

    count: int = 5
    asks: str = "named"

    def __post_init__(self) -> None:
        check_integer("count", self.count, 2, 10)
        if self.asks not in ASKS:
            raise InputError(f"asks is {self.asks!r}; expected one of {', '.join(ASKS)}.")

    @property
    def description(self) -> str:
        """One sentence: how large questions are."""
        return f"There are {self.count} digits."

    def one(self, rng: random.Random) -> tuple[str, int]:
        """Return a call on random digits, and its value."""
        function = _FUNCTIONS[below(rng, len(_FUNCTIONS))]
        digits = [below(rng, 10) for _ in range(self.count)]
        return f"{function}({','.join(map(str, digits))})", self._value(function, digits)

    def _value(self, function: str, digits: list[int]) -> int:
        best_first = sorted(digits, reverse=function == "max")
        if self.asks == "next":
            return (best_first[0] + 1) % 10
        return best_first[{"named": 0, "other": -1, "second": 1}[self.asks]]


def _task(name: str, asks: str) -> GeneratedTask:
    form = row_form(name, f"Compare: {ASKS[asks]} of some digits; the answer is a digit.")
    return GeneratedTask(form, Compare(asks=asks))


GENERATED = (
    _task("compare", "named"),
    _task("compare_next", "next"),
    _task("compare_other", "other"),
    _task("compare_second", "second"),
)
