"""Questions drawn from a seed: balanced answers, and parts that never overlap."""

from __future__ import annotations

import hashlib
import math
import random
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar

from steerscope.errors import InputError
from steerscope.experiments.tasks.task import check_part

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
# Tenths of all questions, by hash.
_TENTHS = {"train": range(0, 8), "validation": range(8, 9), "test": range(9, 10)}
# Draws without one usable question after which the space counts as exhausted: about a second, and some
# hundred times the number of draws that the rarest answer of the smallest part needs while there are any.
_PATIENCE = 100_000
_TOKEN = re.compile(r"\[?\w+|\S")


class Generator(ABC):
    """Draws questions whose answer is one of a few.

    Each example first draws its answer uniformly, then takes the next question that has this answer: given the answer,
    questions are distributed as :meth:`one` draws them (but without repetition).

    The text decides which part a question belongs to: a hash of its sorted tokens, 8 of 10 to training and 1 each to
    validation and test. So the parts are disjoint for all sizes and seeds, even up to the order of tokens. Within a
    draw no question occurs twice.

    Attributes:
        name: Decides, with part and seed, what is drawn.
        answers: What an answer may be.
    """

    name: ClassVar[str]
    answers: ClassVar[tuple[str, ...]] = DIGITS

    @property
    @abstractmethod
    def description(self) -> str:
        """One sentence: how large questions are."""

    @abstractmethod
    def one(self, rng: random.Random) -> tuple[str, int]:
        """Return a random question and the index of its answer.

        Only ``rng.random()`` may be used (see :func:`below`): its sequence is the one that Python promises not to
        change.
        """

    def draw(self, part: str, n: int, seed: int) -> list[tuple[str, int]]:
        """Return ``n`` different questions of one part with the indices of their answers: ``("[MAX 3 5]", 5)``.

        The first ``n`` of a longer draw with the same seed are the shorter draw.

        Args:
            part: ``"train"``, ``"validation"`` or ``"test"``.
            n: How many, at least 1.
            seed: Another seed, another draw.

        Returns:
            Questions whose answers are drawn uniformly.

        Raises:
            InputError: An argument is out of range, or questions run out before ``n``.

        Cost: by default about 0.03 ms per training example and 0.1 ms per example of the other parts.
        """
        check_part(part)
        check_integer("n", n, 1, None)
        check_integer("seed", seed, None, None)
        found = list(islice(self._stream(part, seed), n))
        if len(found) < n:
            settings = [f"{name}={value}" for name, value in vars(self).items()]
            raise InputError(
                f"received n={n}; expected at most {len(found)}, which is how many different {part} questions with "
                f"balanced answers {' and '.join((self.name, *settings))} give. Ask for fewer"
                f"{', or raise a setting' if settings else ''}."
            )
        return found

    def _stream(self, part: str, seed: int) -> Iterator[tuple[str, int]]:
        """Yield questions until they run out, the same ones for however many are taken."""
        rng = random.Random(f"{self.name} {part} {seed}")
        seen: set[str] = set()
        # Questions drawn while another answer was wanted wait here, so that none is drawn in vain.
        waiting: list[deque[str]] = [deque() for _ in self.answers]
        while True:
            answer = below(rng, len(self.answers))
            draws = 0
            while not waiting[answer]:
                if draws == _PATIENCE:
                    return
                draws += 1
                question, value = self.one(rng)
                if question not in seen and _tenth(question) in _TENTHS[part]:
                    seen.add(question)
                    waiting[value].append(question)
            yield waiting[answer].popleft(), answer


def below(rng: random.Random, bound: int) -> int:
    """Return a uniform integer from 0 to ``bound - 1``.

    Args:
        rng: Where random numbers come from.
        bound: At least 1.

    Returns:
        An integer that depends on one call of ``rng.random()``, the same in every version of Python.
    """
    return math.floor(rng.random() * bound)


def several(rng: random.Random, pool: tuple[str, ...], n: int) -> list[str]:
    """Return ``n`` different members of a pool in random order.

    Args:
        rng: Where random numbers come from.
        pool: What to choose from.
        n: How many, at most as many as there are.

    Returns:
        Members of the pool, each once.
    """
    left = list(pool)
    return [left.pop(below(rng, len(left))) for _ in range(n)]


def _tenth(question: str) -> int:
    """Return which tenth of all questions this one belongs to, the same for any order of tokens."""
    # Sorting tokens also joins questions that differ in more than order, which does no harm.
    tokens = " ".join(sorted(_TOKEN.findall(question)))
    return int.from_bytes(hashlib.sha256(tokens.encode()).digest()[:8], "big") % 10


def check_integer(name: str, value: object, low: int | None, high: int | None) -> None:
    """Refuse what is not an integer, or is out of bounds (``None`` for no bound).

    Args:
        name: Name of the argument, for the message.
        value: What was given.
        low: Smallest allowed value.
        high: Largest allowed value.

    Raises:
        InputError: The message names the argument.
    """
    wanted = "an integer"
    if low is not None:
        wanted += f" of at least {low}" if high is None else f" from {low} to {high}"
    is_integer = type(value) is int
    if not is_integer or (low is not None and value < low) or (high is not None and value > high):  # type: ignore[operator]
        raise InputError(f"{name} is {value!r}; expected {wanted}. Pass another {name}.")
