"""From texts to token ids: special tokens once, padding that exists, no token that the model does not have.

Whatever needs the tokens of a text takes them from here (rankings, evaluation, training, validation, measurements), so
that a prompt is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from steerscope.errors import InputError
from steerscope.models.wrappers import vocab_size

# Texts that show what a tokenizer adds, for a text that has no token of its own.
_PROBES = ("a", "0", ".", "the")


def text_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a text that a model is to continue, every special token at its start once.

    What the tokenizer puts before a text is kept, unless the text begins with it already (one written by
    ``apply_chat_template(tokenize=False)`` does). What it puts behind a text is left out: the model is to go on.
    Special tokens that the text itself spells stay as they are.

    Args:
        text: The text, special tokens spelled out or not.
        tokenizer: The model's.

    Returns:
        Token ids, with what belongs before a text and without what belongs behind it.
    """
    own = own_tokens(text, tokenizer)
    start = _tokens_before(text, own, tokenizer)
    if own and own[0] in start:
        start = start[: start.index(own[0])]
    return start + own


def own_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the text itself spells.

    Args:
        text: The text alone.
        tokenizer: The model's; adds nothing here.

    Returns:
        Token ids.
    """
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def completion_tokens(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of what follows it.

    The two are tokenised together where that leaves the prompt's own tokens as they are and adds some, else apart: a
    model that is to continue the prompt sees the prompt's own tokens in either case.

    Args:
        prompt: What the model reads.
        completion: What it is to write, with its leading space.
        tokenizer: The model's.

    Returns:
        Token ids of the prompt, and those of the completion.
    """
    before, whole = text_tokens(prompt, tokenizer), text_tokens(prompt + completion, tokenizer)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    return before, own_tokens(completion, tokenizer)


def padded(
    rows: Sequence[Sequence[int]], value: int, device: torch.device, side: Literal["left", "right"] = "right"
) -> Tensor:
    """Return rows filled up with a value to the longest, ``(row column)``.

    Args:
        rows: Whole numbers, one sequence per row; lengths may differ.
        value: What fills the shorter rows.
        device: Where the tensor is made.
        side: Where it fills them.

    Returns:
        Integers, as wide as the longest row.

    Example:
        >>> padded([[5, 6], [7]], 0, torch.device("cpu"), "left").tolist()
        [[5, 6], [0, 7]]
    """
    whole = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(whole, batch_first=True, padding_value=value, padding_side=side).to(device)


def pad_token(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> int:
    """Return a token to fill with: any that the model has, since the mask hides it; even the end token.

    Args:
        tokenizer: Its padding token is taken, else its end token, where the model has an embedding for it.
        model: A transformers model.

    Returns:
        The token's id, below the number of embeddings.
    """
    rows = _num_embeddings(model)
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in own if isinstance(token, int) and token >= 0 and (rows is None or token < rows)))


def require_known_tokens(
    sequences: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, model: nn.Module
) -> None:
    """Refuse texts with a token that the model has no embedding for.

    Args:
        sequences: Token ids.
        tokenizer: What made them.
        model: A transformers model.

    Raises:
        InputError: There is one; the message names it.
    """
    rows = _num_embeddings(model)
    largest = max((max(ids) for ids in sequences if len(ids)), default=0)
    if rows is not None and largest >= rows:
        raise InputError(
            f"the tokenizer makes token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}) of a text; the model "
            f"knows tokens 0 to {rows - 1}, the {rows} rows of its embedding. Load the model with the tokenizer that "
            "belongs to it, or, if tokens were added, call model.resize_token_embeddings(len(tokenizer)) and train "
            "them before."
        )


def _num_embeddings(model: nn.Module) -> int | None:
    """Return how many tokens a model knows; ``None`` for one that has no table of them to look at."""
    return vocab_size(model) if hasattr(model, "get_input_embeddings") else None


def _tokens_before(text: str, own: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before a text whose own tokens are given."""
    whole = list(tokenizer(text)["input_ids"])
    if not own:
        # Before or behind? A text with tokens of its own tells.
        for probe in _PROBES:
            if inside := own_tokens(probe, tokenizer):
                return _tokens_before(probe, inside, tokenizer)
        return whole
    # The first place is as good as any other: where there are several, the text begins with what is added.
    for place in range(len(whole) - len(own) + 1):
        if whole[place : place + len(own)] == own:
            return whole[:place]
    # Tokenised differently behind a special token: those it begins with, but for the text's own.
    special = set(tokenizer.all_special_ids)
    leading = next((i for i, token in enumerate(whole) if token not in special), len(whole))
    return whole[:leading]
