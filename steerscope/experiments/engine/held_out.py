"""Examples as runs learn them and are tested on: token ids, and the tokens an answer is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from steerscope.errors import InputError
from steerscope.experiments.tasks.supervised import SupervisedSequence, completion_tokens
from steerscope.models.tokens import require_known_tokens


@dataclass(frozen=True)
class HeldOut:
    """Tokenised examples of one part.

    Attributes:
        sequences: Prompt and completion, without an end token.
        choices: Per example the tokens its last one is compared with, or None: where an example has no choices, or its
            choices differ in more than their last token.
    """

    sequences: tuple[SupervisedSequence, ...]
    choices: tuple[tuple[int, ...], ...] | None


def hold_out(
    texts: Sequence[tuple[str, str, Sequence[str] | None]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    model: nn.Module,
) -> HeldOut:
    """Tokenise examples.

    Args:
        texts: Prompt, completion and, if it is one of several, all choices.
        tokenizer: The model's.
        max_length: The model's context in tokens.
        model: The model, which has to know every token.

    Returns:
        The sequences, and the choices of each unless one of the examples is without.

    Raises:
        InputError: An example does not fit into the context, or has a token that the model does not know.
    """
    sequences, choices = [], list[tuple[int, ...] | None]()
    for prompt, completion, options in texts:
        before, after = completion_tokens(prompt, completion, tokenizer)
        if max_length is not None and len(before) + len(after) > max_length:
            raise InputError(
                f"the prompt {prompt[:40]!r} and its completion have {len(before) + len(after)} tokens; the model "
                f"takes {max_length}. Leave it out, or shorten it."
            )
        sequences.append(SupervisedSequence((*before, *after), len(before)))
        choices.append(_last_tokens(prompt, options, after, tokenizer))
    require_known_tokens([sequence.ids for sequence in sequences], tokenizer, model)
    known = [own for own in choices if own is not None]
    return HeldOut(tuple(sequences), tuple(known) if len(known) == len(choices) else None)


def _last_tokens(
    prompt: str, options: Sequence[str] | None, after: list[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...] | None:
    if options is None:
        return None
    tokens = [completion_tokens(prompt, option, tokenizer)[1] for option in options]
    if any(own[:-1] != after[:-1] for own in tokens):
        return None
    return tuple(own[-1] for own in tokens)
