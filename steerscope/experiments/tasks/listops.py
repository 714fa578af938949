"""ListOps: nested list operations on digits, generated from a seed; the task that needs no download.

Operators, leaves and the meaning of each follow Nangia and Bowman (2018), "ListOps: A Diagnostic Dataset for
Latent Tree Learning": MIN, MAX, MED (median; of an even count the mean of the middle two, truncated) and SM
(sum modulo 10). Expressions here are shorter, since a language model pays for every token.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from steerscope.errors import InputError
from steerscope.experiments.tasks.task import check_part

_OPERATORS = ("MIN", "MAX", "MED", "SM")
# An argument above the deepest level is itself a list this often: about 1.5 inner lists by default.
_NESTED = 0.5
# Tenths of all expressions, by hash.
_TENTHS = {"train": range(0, 8), "validation": range(8, 9), "test": range(9, 10)}
# Draws without one usable expression after which the space counts as exhausted: about a second, and some
# hundred times the number of draws that the rarest answer of the smallest part needs while there are any.
_PATIENCE = 100_000


@dataclass(frozen=True)
class ListOps:
    """Evaluate expressions such as ``[MAX 3 [MIN 2 4] 5]``, whose value is one digit.

    How an expression is drawn: an operator, uniformly; two to ``max_args`` arguments, uniformly; each
    argument is a digit, uniformly, or above the deepest level with probability 1/2 an expression. Drawn so,
    some values are more frequent than others (with many arguments 0 and 9, from MIN and MAX). Each example
    therefore first draws its answer uniformly from the ten digits, then takes the next expression that has
    this value: given the answer, expressions are distributed as before (but without repetition), so nothing
    is added that gives the answer away.

    What operators and digits say by themselves remains, and accuracies have to be read against it. Fitted on
    5,000 examples and tested on 5,000 others, by default: guessing from the outermost operator is right for
    22%, from the most frequent digit for 24%, from the outermost operator and the largest digit for 29%.

    The text decides which part an expression belongs to: a hash of its sorted tokens, 8 of 10 to training and
    1 each to validation and test. So the parts are disjoint for all sizes and seeds, even up to the order of
    arguments. Within a draw no expression occurs twice.

    Args:
        max_depth: Levels of nested lists, 1 to 4. The default makes prompts of about 20 tokens (at most 48)
            for a tokenizer that splits " 3" in two, about 15 (at most 32) for one that does not.
        max_args: Largest number of arguments of a list, 2 to 10.

    Raises:
        InputError: A setting is out of range.
    """

    max_depth: int = 2
    max_args: int = 4

    def __post_init__(self) -> None:
        # Beyond these bounds an expression can have thousands of tokens.
        _check_integer("max_depth", self.max_depth, 1, 4)
        _check_integer("max_args", self.max_args, 2, 10)

    @property
    def description(self) -> str:
        """One sentence: how large expressions are."""
        return f"Lists of digits are at most {self.max_depth} deep, with up to {self.max_args} arguments."

    def draw(self, part: str, n: int, seed: int) -> list[tuple[str, int]]:
        """Return ``n`` different expressions of one part with their values: ``("[MAX 3 5]", 5)``.

        The first ``n`` of a longer draw with the same seed are the shorter draw.

        Args:
            part: ``"train"``, ``"validation"`` or ``"test"``.
            n: How many, at least 1.
            seed: Another seed, another draw.

        Returns:
            Expressions whose values are drawn uniformly.

        Raises:
            InputError: An argument is out of range, or expressions this small run out before ``n``.

        Cost: by default about 0.03 ms per training expression and 0.1 ms per expression of the other parts.
        """
        check_part(part)
        _check_integer("n", n, 1, None)
        _check_integer("seed", seed, None, None)
        found = list(islice(self._stream(part, seed), n))
        if len(found) < n:
            raise InputError(
                f"received n={n}; expected at most {len(found)}, which is how many different {part} "
                f"expressions with balanced answers max_depth={self.max_depth} and max_args={self.max_args} "
                "give. Ask for fewer, or raise max_depth or max_args."
            )
        return found

    def _stream(self, part: str, seed: int) -> Iterator[tuple[str, int]]:
        """Yield expressions until expressions run out, the same ones for however many are taken."""
        # Only random() is used below: its sequence is the one that Python promises not to change.
        rng = random.Random(f"listops {part} {seed}")
        seen: set[str] = set()
        # Expressions drawn while another answer was wanted wait here, so that none is drawn in vain.
        waiting: list[deque[str]] = [deque() for _ in range(10)]
        while True:
            answer = _below(rng, 10)
            draws = 0
            while not waiting[answer]:
                if draws == _PATIENCE:
                    return
                draws += 1
                text, value = self._draw(rng, depth=1)
                if text not in seen and _tenth(text) in _TENTHS[part]:
                    seen.add(text)
                    waiting[value].append(text)
            yield waiting[answer].popleft(), answer

    def _draw(self, rng: random.Random, depth: int) -> tuple[str, int]:
        """Return the text and the value of one random expression whose outermost list is at ``depth``."""
        operator = _OPERATORS[_below(rng, len(_OPERATORS))]
        texts: list[str] = []
        values: list[int] = []
        for _ in range(2 + _below(rng, self.max_args - 1)):
            if depth < self.max_depth and rng.random() < _NESTED:
                text, value = self._draw(rng, depth + 1)
            else:
                value = _below(rng, 10)
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


def _below(rng: random.Random, bound: int) -> int:
    """Return a uniform integer from 0 to ``bound - 1``."""
    return math.floor(rng.random() * bound)


def _tenth(text: str) -> int:
    """Return which tenth of all expressions this one belongs to, the same for any order of arguments."""
    # Sorting tokens (not trees) also joins expressions that differ in more than order, which does no harm.
    tokens = " ".join(sorted(text.replace("]", " ]").split()))
    return int.from_bytes(hashlib.sha256(tokens.encode()).digest()[:8], "big") % 10


def _check_integer(name: str, value: object, low: int | None, high: int | None) -> None:
    wanted = "an integer"
    if low is not None:
        wanted += f" of at least {low}" if high is None else f" from {low} to {high}"
    is_integer = type(value) is int
    if not is_integer or (low is not None and value < low) or (high is not None and value > high):  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}; expected {wanted}. Pass another {name}.")
