"""What a run learns from: one fixed order of examples for all methods of a seed, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerscope.analysis.provenance import RECIPE, content_hash
from steerscope.experiments.tasks.supervised import SupervisedSequence, supervise
from steerscope.experiments.tasks.task import MOST_GENERATED, Task, TaskExample, at_most, fingerprint
from steerscope.experiments.training.options import TrainOptions
from steerscope.models.lengths import require_one_side, switch_length
from steerscope.models.load import LoadedModel

# Batches of similar length are cut from pools of so many batches: padding would otherwise cost half of the time.
POOL = 8
_SAMPLED = 64


@dataclass(frozen=True)
class Parts:
    """Examples of a run; validation and test are the same for every seed.

    Attributes:
        train: In the order of the seed.
        validation: What a search for the learning rate chooses on; empty where there is none.
        test: What is reported.
        pool: Hash of the train part that every seed draws from.
    """

    train: tuple[TaskExample, ...]
    validation: tuple[TaskExample, ...]
    test: tuple[TaskExample, ...]
    pool: str = ""

    @property
    def data(self) -> dict[str, str]:
        """Hashes of the data by part, the same for every seed: of train, of all that seeds draw from."""
        found = {"test": content_hash(self.test, ordered=False)}
        if self.train:
            found["train"] = self.pool
        if self.validation:
            found["validation"] = content_hash(self.validation, ordered=False)
        return found

    @property
    def train_set(self) -> str:
        """Hash of the training examples."""
        return fingerprint(self.train) if self.train else ""


def draw_parts(task: Task, options: TrainOptions) -> Parts:
    """Draw the examples of a run.

    Args:
        task: The task.
        options: Method, length of training and numbers of examples.

    Returns:
        Examples to train on, to choose the learning rate on, and to test on.

    Raises:
        InputError: The task lacks rows, or has fewer than were asked for.
    """
    test = at_most(task, "test", options.test_examples, 0)
    if options.method == "none":
        return Parts((), (), tuple(test))
    needed = options.steps * options.batch_size
    wanted = options.train_examples
    if wanted is None and task.is_generated:
        wanted = min(needed, MOST_GENERATED)  # beyond, they are repeated like others
    train = task.split("train", wanted, options.seed)[:needed]
    chosen_on = task.split("validation", None, 0)[: options.validation_examples] if options.searches else []
    # A generated part has no end: its first examples stand for what makes them.
    pool = task.split("train", _SAMPLED if task.is_generated else None, 0)
    return Parts(tuple(train), tuple(chosen_on), tuple(test), content_hash(pool, ordered=False))


def run_settings(options: TrainOptions, parts: Parts) -> dict[str, Any]:
    """Return what decides a run's outcome beside task, method, sites, rank, seed and model.

    Args:
        options: The options of the run.
        parts: Its examples.

    Returns:
        Settings by name, with hashes of the data.
    """
    return options.settings() | {"data": parts.data, "recipe": RECIPE}


def supervised(
    parts: Parts, loaded: LoadedModel, options: TrainOptions, *, ends: bool = True
) -> tuple[tuple[SupervisedSequence, ...], int]:
    """Return the training sequences that fit, and how many do not.

    Args:
        parts: The run's examples.
        loaded: The model.
        options: The run's.
        ends: Whether an end-of-sequence token is learned.

    Returns:
        The sequences, and the number of examples that are too long.

    Raises:
        InputError: None fits, one has a token that is none of the model's, or they lie on both sides of the length
            where its rotary embedding switches.
    """
    limits = [limit for limit in (options.max_length, loaded.max_length) if limit is not None]
    found = supervise(parts.train, loaded.tokenizer, min(limits) if limits else None, loaded.model, ends=ends)
    switch = switch_length(loaded.model)
    if options.batch_size > 1:
        lengths = [len(one.ids) for one in found.sequences]
        require_one_side(lengths, switch, "training examples", f"Give [[max_length]] {switch}, or [[batch_size]] 1.")
    return found.sequences, len(found.too_long)


def training_rows(
    sequences: Sequence[SupervisedSequence], steps: int, batch_size: int, seed: int
) -> list[SupervisedSequence]:
    """Return ``steps * batch_size`` sequences in the order in which they are trained on.

    Read in pieces of ``batch_size`` it is a seeded order of batches of similar length, as many epochs as it takes.
    The whole run is one pass over this list, so that a run that goes on finds its place by counting.

    Args:
        sequences: Tokenised training examples.
        steps: Optimizer steps.
        batch_size: Sequences per step.
        seed: Of the order.

    Returns:
        Sequences; each occurs as often as any other, up to once.
    """
    shuffler = random.Random(seed)
    stream: list[int] = []
    while len(stream) < steps * batch_size:
        order = list(range(len(sequences)))
        shuffler.shuffle(order)
        stream += order
    rows: list[SupervisedSequence] = []
    for start in range(0, steps * batch_size, POOL * batch_size):
        stop = min(start + POOL * batch_size, steps * batch_size)
        pool = sorted(stream[start:stop], key=lambda i: len(sequences[i].ids))
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        shuffler.shuffle(cut)
        rows += [sequences[i] for batch in cut for i in batch]
    return rows
