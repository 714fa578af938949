"""Training, selection and test examples that share no content, from a task's own splits or cut from one file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from steerscope.analysis.data.examples import Example, content_order
from steerscope.errors import InputError
from steerscope.experiments.tasks import Task

# How a file without splits of its own is cut, by a hash of each example's content.
PARTS = {"train": 0.6, "selection": 0.15, "test": 0.25}
LEAST = 16


@dataclass(frozen=True)
class DataSplits:
    """Where examples of a validation come from.

    ``train(n, seed)`` is fresh data for another seed where the source has enough; ``selection`` chooses learning
    rates and ``test`` is only ever used to report.
    """

    name: str
    task: Task | None
    pools: dict[str, list[Example]]

    def train(self, n: int, seed: int) -> list[Example]:
        """Return at most ``n`` training examples of one seed."""
        if self.task is not None:
            # Seeds of the ranking and of training must not draw the same list.
            return self.task.split("train", n, 1000 + seed)
        pool = self.pools["train"]
        return [pool[i] for i in content_order(pool, 1000 + seed)[:n]]

    def ranking(self, n: int, seed: int) -> list[Example]:
        """Return the examples that the ranking is made from: training examples, drawn by another seed."""
        if self.task is not None:
            return self.task.split("train", n, seed)
        pool = self.pools["train"]
        return [pool[i] for i in content_order(pool, seed)[:n]]

    def selection(self, n: int) -> list[Example]:
        """Return ``n`` held-out examples to choose learning rates on."""
        return self.task.split("validation", n, 0) if self.task is not None else self.pools["selection"][:n]

    def test(self, n: int) -> list[Example]:
        """Return ``n`` test examples."""
        return self.task.split("test", n, 0) if self.task is not None else self.pools["test"][:n]


def splits_of_task(task: Task) -> DataSplits:
    """Use a task's own disjoint parts: train, validation (for selection) and test."""
    return DataSplits(task.name, task, {})


def splits_of_examples(name: str, examples: Sequence[Example]) -> DataSplits:
    """Cut one list of examples into three parts by content: examples with the same prompt stay together.

    Raises:
        InputError: Too few examples for a part.
    """
    pools: dict[str, list[Example]] = {part: [] for part in PARTS}
    for example in examples:
        place = int.from_bytes(hashlib.sha256(example.prompt.strip().encode()).digest()[:8], "big") / 2**64
        part = "train" if place < PARTS["train"] else "selection" if place < 1 - PARTS["test"] else "test"
        pools[part].append(example)
    small = {part: len(pool) for part, pool in pools.items() if len(pool) < LEAST}
    if small:
        raise InputError(
            f"{name} has {len(examples)} examples; cut by content, {small} remain for parts that need {LEAST} each. "
            "Give at least 200 different prompts."
        )
    return DataSplits(name, None, pools)


def majority_rate(examples: Sequence[Example]) -> float:
    """Return what always giving one answer, or always the choice in one place, is right for: the best in hindsight."""
    answers, places = Counter(e.completion for e in examples), Counter(e.answer_index for e in examples)
    return max(answers.most_common(1)[0][1], places.most_common(1)[0][1]) / len(examples)


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a hash of a list of examples, order included."""
    # Older than :func:`~steerscope.analysis.provenance.content_hash`; kept runs are named by it.
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.prompt, example.completion, example.choices, example.answer_index)).encode())
    return digest.hexdigest()[:16]
