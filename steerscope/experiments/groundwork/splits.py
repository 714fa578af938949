"""Training, selection and test examples that share no content, from a task's own splits or cut from one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from steerscope.analysis.data.examples import Example
from steerscope.analysis.scoring.options import MIN_EXAMPLES
from steerscope.experiments.tasks import FileTask, Task, at_most

# Least examples of a part to choose rates on, and of one to report.
LEAST = 16


@dataclass(frozen=True)
class DataSplits:
    """Where training, selection and test examples come from.

    ``train(n, seed)`` is fresh data for another seed where the source has enough; ``selection`` chooses learning
    rates and ``test`` is only ever used to report. A part that has fewer than ``n`` examples gives all of them.
    """

    name: str
    task: Task

    def train(self, n: int, seed: int) -> list[Example]:
        """Return at most ``n`` training examples of one seed.

        Args:
            n: Most examples.
            seed: Training seed.

        Returns:
            Examples in the order in which they are drawn.
        """
        # Seeds of the ranking and of training must not draw the same list.
        return [*at_most(self.task, "train", n, 1000 + seed)]

    def ranking(self, n: int, seed: int) -> list[Example]:
        """Return the examples that the ranking is made from: training examples, drawn by another seed.

        Args:
            n: Most examples.
            seed: Of the draw.

        Returns:
            Another draw than any training seed's; single examples may be in both.
        """
        return [*at_most(self.task, "train", n, seed)]

    def selection(self, n: int) -> list[Example]:
        """Return at most ``n`` held-out examples to choose learning rates on."""
        return [*at_most(self.task, "validation", n, 0)]

    def test(self, n: int) -> list[Example]:
        """Return at most ``n`` test examples."""
        return [*at_most(self.task, "test", n, 0)]


def splits_of_task(task: Task) -> DataSplits:
    """Use a task's own disjoint parts: train, validation (for selection) and test.

    Returns:
        The three parts under the task's name.

    Raises:
        InputError: A user's file has too few examples for a part.
    """
    if isinstance(task, FileTask):
        task.require("a validation", train=MIN_EXAMPLES, validation=LEAST, test=LEAST)
    return DataSplits(task.name, task)


def majority_rate(examples: Sequence[Example]) -> float:
    """Return what always giving one answer, or always the choice in one place, is right for: the best in hindsight."""
    answers, places = Counter(e.completion for e in examples), Counter(e.answer_index for e in examples)
    return max(answers.most_common(1)[0][1], places.most_common(1)[0][1]) / len(examples)
