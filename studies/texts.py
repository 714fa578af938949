"""Texts that studies learn from and measure on: lines of files, windows of one length, prompts of a task."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from steerscope.analysis.data.examples import Example
from steerscope.errors import InputError
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import DataSplits, splits_of_task
from steerscope.experiments.tasks import FileTask, get_task
from steerscope.models.load import LoadedModel

# Words of a text that are given, the rest being learned; least texts to measure on.
PROMPT_WORDS, LEAST = 3, 16


def lines_of(path: Path) -> list[str]:
    """Return the different lines of a text file, plain or gzip, that are not empty."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def windows_of(loaded: LoadedModel, texts: Sequence[str], name: str, length: int, count: int) -> Tensor:
    """Return the first tokens of texts ``(text token)``; those that are shorter are left out.

    Args:
        loaded: Whose tokenizer.
        texts: The texts.
        name: Of where they are from, for the message.
        length: Tokens of each.
        count: Most texts.

    Raises:
        InputError: Fewer than 16 are long enough.
    """
    ids = [loaded.tokenizer(text).input_ids[:length] for text in texts]
    whole = [one for one in ids if len(one) == length][:count]
    if len(whole) < LEAST:
        raise InputError(f"{name} has {len(whole)} texts of {length} tokens; expected {LEAST}. Give longer texts.")
    return torch.tensor(whole)


def splits_of(task: str) -> DataSplits:
    """Return the splits of a task, or of a file of texts, of which everything after the third word is learned.

    Args:
        task: A task's name, or the path of a file with one text per line, cut into parts by content.
    """
    if not Path(task).is_file():
        return splits_of_task(get_task(task))
    parted = [line.split(" ", PROMPT_WORDS) for line in lines_of(Path(task))]
    examples = [
        Example(" ".join(words[:-1]), f" {words[-1]}") for words in parted if len(words) > PROMPT_WORDS and words[-1]
    ]
    return splits_of_task(FileTask.of(Path(task).name, examples))


def prompts_of(loaded: LoadedModel, data: SplitData, count: int) -> Tensor:
    """Return prompts of the task that have the most frequent length ``(text token)``, none twice.

    Args:
        loaded: Whose tokenizer.
        data: The task.
        count: Most prompts.
    """
    prompts = dict.fromkeys(one.prompt for one in data.splits.train(2 * count, 97))
    ids = [loaded.tokenizer(prompt).input_ids for prompt in prompts]
    length = Counter(map(len, ids)).most_common(1)[0][0]
    return torch.tensor([one for one in ids if len(one) == length][:count])
