"""Data sets of tokens for statements about one edit for all: English text that comes with the package, a task.

The paragraphs of ``english.txt`` were written for this package and are under its licence; no two begin alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from steerscope.analysis.data.encoding import Encoded
from steerscope.equivalence.propositions.texts import Texts
from steerscope.errors import InputError
from steerscope.models.lengths import readable_length
from steerscope.models.load import LoadedModel

ENGLISH = Path(__file__).with_name("english.txt")
# Tokens of a window at most; the shortest paragraph has as many in the bundled model's vocabulary.
LENGTH = 64
# Tokens of a task: about as many as the English text has.
TASK_TOKENS = 4000
# A window that sees less than this says little of text.
SHORTEST = 4
FITTED = 2 / 3


def paragraphs(path: str | Path = ENGLISH) -> list[str]:
    """Return the paragraphs of a text file, which are separated by empty lines.

    Raises:
        InputError: The file cannot be read as text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text {str(path)!r}: {error}.") from error
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def text_windows(loaded: LoadedModel, texts: Sequence[str], name: str) -> Texts:
    """Return the beginnings of texts, of one length; whole texts are fitted on or held out.

    Args:
        loaded: The model, for its tokenizer.
        texts: Different ones.
        name: Of the data.

    Returns:
        Two thirds of the texts to fit on, in their order.

    Raises:
        InputError: Too few texts, or too short ones.
    """
    return _parted(loaded, [loaded.tokenizer(text)["input_ids"] for text in texts], name)


def task_windows(loaded: LoadedModel, encoded: Encoded, name: str) -> Texts:
    """Return the beginnings of a task's prompts, of one length.

    Args:
        loaded: The model.
        encoded: The task's examples; of many, as many as have about :data:`TASK_TOKENS` tokens.
        name: Of the task.

    Returns:
        Two thirds of the prompts to fit on, in their order.

    Raises:
        InputError: Too few prompts, or too short ones.
    """
    return _parted(loaded, [list(sequence.ids) for sequence in encoded.sequences], name, TASK_TOKENS)


def _parted(loaded: LoadedModel, sequences: list[list[int]], name: str, tokens: int | None = None) -> Texts:
    # Half of the texts have at least the median length: no padding, and no text wasted for a few short ones.
    length = min(LENGTH, sorted(len(ids) for ids in sequences)[len(sequences) // 2]) if sequences else 0
    length = readable_length(loaded.model, length) or length
    long = list(dict.fromkeys(tuple(ids[:length]) for ids in sequences if len(ids) >= length))
    if tokens is not None:
        long = long[: -(-tokens // max(length, 1))]
    if len(long) < 3 or length < SHORTEST:
        raise InputError(
            f"{name}: got {len(long)} different texts of {length} tokens; expected at least three of {SHORTEST} or "
            "more. Give more or longer paragraphs, separated by empty lines."
        )
    ids = torch.tensor(long, device=loaded.device)
    count = round(FITTED * len(ids))
    return Texts(name, ids[:count], ids[count:])
