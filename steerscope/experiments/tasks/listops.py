"""ListOps: nested list operations on digits, generated from a seed; the task that needs no download.

Operators, leaves and the meaning of each follow Nangia and Bowman (2018), "ListOps: A Diagnostic Dataset for
Latent Tree Learning": MIN, MAX, MED (median; of an even count the mean of the middle two, truncated) and SM
(sum modulo 10). Expressions here are shorter, since a language model pays for every token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from steerscope.experiments.tasks.generator import Generator, below, check_integer

_OPERATORS = ("MIN", "MAX", "MED", "SM")
# An argument above the deepest level is itself a list this often: about 1.5 inner lists by default.
_NESTED = 0.5


@dataclass(frozen=True)
class ListOps(Generator):
    """Evaluate expressions such as ``[MAX 3 [MIN 2 4] 5]``, whose value is one digit.

    How an expression is drawn: an operator, uniformly; two to ``max_args`` arguments, uniformly; each
    argument is a digit, uniformly, or above the deepest level with probability 1/2 an expression. Drawn so,
    some values are more frequent than others (with many arguments 0 and 9, from MIN and MAX); answers are balanced
    as in every :class:`~steerscope.experiments.tasks.generator.Generator`, so nothing is added that gives them away.

    What operators and digits say by themselves remains, and accuracies have to be read against it. Fitted on
    5,000 examples and tested on 5,000 others, by default: guessing from the outermost operator is right for
    22%, from the most frequent digit for 24%, from the outermost operator and the largest digit for 29%.

    Args:
        max_depth: Levels of nested lists, 1 to 4. The default makes prompts of about 20 tokens (at most 48)
            for a tokenizer that splits " 3" in two, about 15 (at most 32) for one that does not.
        max_args: Largest number of arguments of a list, 2 to 10.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> question, value = ListOps().draw("train", n=1, seed=0)[0]
        >>> question.split()[0] in ("[MIN", "[MAX", "[MED", "[SM"), 0 <= value <= 9
        (True, True)
    """

    name: ClassVar[str] = "listops"

    max_depth: int = 2
    max_args: int = 4

    def __post_init__(self) -> None:
        # Beyond these bounds an expression can have thousands of tokens.
        check_integer("max_depth", self.max_depth, 1, 4)
        check_integer("max_args", self.max_args, 2, 10)

    @property
    def description(self) -> str:
        """One sentence: how large expressions are."""
        return f"Lists of digits are at most {self.max_depth} deep, with up to {self.max_args} arguments."

    def one(self, rng: random.Random) -> tuple[str, int]:
        """Return a random expression and its value."""
        return self._draw(rng, depth=1)

    def _draw(self, rng: random.Random, depth: int) -> tuple[str, int]:
        """Return the text and the value of one random expression whose outermost list is at ``depth``."""
        operator = _OPERATORS[below(rng, len(_OPERATORS))]
        texts: list[str] = []
        values: list[int] = []
        for _ in range(2 + below(rng, self.max_args - 1)):
            if depth < self.max_depth and rng.random() < _NESTED:
                text, value = self._draw(rng, depth + 1)
            else:
                value = below(rng, 10)
                text = str(value)
            texts.append(text)
            values.append(value)
        return f"[{operator} {' '.join(texts)}]", _apply(operator, values)


def _apply(operator: str, values: list[int]) -> int:
    if operator == "MIN":
        return min(values)
    if operator == "MAX":
        return max(values)
    if operator == "SM":
        return sum(values) % 10
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
