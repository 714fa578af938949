"""Tokens to learn from: prompt, completion and, unless an answer is one token, the end-of-sequence token; nothing cut.

Generation starts from exactly the tokens that stand before the supervised ones here, and an example that does not
fit is left out whole: cutting it on the right would drop its answer, or all supervision, silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from steerscope.errors import InputError
from steerscope.experiments.tasks.task import TaskExample, TaskForm
from steerscope.models.tokens import completion_tokens, require_known_tokens


@dataclass(frozen=True)
class SupervisedSequence:
    """Token ids; those from ``first_target`` on are learned."""

    ids: tuple[int, ...]
    first_target: int


@dataclass(frozen=True)
class SupervisedExamples:
    """Sequences to train on.

    Attributes:
        sequences: One per example that fits.
        kept: Their places among the examples that were given.
        too_long: Places of the examples left out.
    """

    sequences: tuple[SupervisedSequence, ...]
    kept: tuple[int, ...]
    too_long: tuple[int, ...]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends a completion.

    Raises:
        InputError: The tokenizer has none, so that no generation could ever be told to stop.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, which completions are trained to end with. Set eos_token in "
            "its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


@dataclass(frozen=True)
class AnswerTokens:
    """How long answers are with one tokenizer.

    Attributes:
        limit: Tokens that a generation may take: those of the longest answer, and its end where one is learned.
        ends: Whether an end-of-sequence token is learned after them.
    """

    limit: int
    ends: bool


def answer_tokens(form: TaskForm, examples: Sequence[TaskExample], tokenizer: PreTrainedTokenizerBase) -> AnswerTokens:
    """Return how long answers are: a task of one-token answers is one with most tokenizers, not with all.

    Args:
        form: The task's.
        examples: Some of the task's.
        tokenizer: The model's.

    Returns:
        The lengths in tokens, and whether an end token is learned.

    Cost: tokenises every different choice once, or every completion.
    """
    if form.max_new_tokens is not None and form.ends:
        return AnswerTokens(form.max_new_tokens, True)
    prompts = {text: one.prompt for one in form.samples or examples for text in one.choices or (one.completion,)}
    longest = max(len(completion_tokens(prompt, text, tokenizer)[1]) for text, prompt in prompts.items())
    ends = form.ends or longest > 1
    return AnswerTokens(form.max_new_tokens or longest + ends, ends)


def supervise(
    examples: Sequence[TaskExample],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    model: nn.Module | None = None,
    *,
    ends: bool = True,
) -> SupervisedExamples:
    """Tokenise examples for training.

    Args:
        examples: What to learn.
        tokenizer: The model's.
        max_length: Longest sequence, end token included; ``None`` for no limit.
        model: What is to learn them; without it tokens that it may not have are not looked for.
        ends: Whether an end-of-sequence token is learned after the completion; see :func:`answer_tokens`.

    Returns:
        Sequences, the examples they are of, and those that were left out because they are too long.

    Raises:
        InputError: No example fits, a prompt has no token, or a token is none of the model's.
    """
    end = end_token(tokenizer) if ends else None
    sequences, kept, too_long = [], [], []
    for index, example in enumerate(examples):
        before, after = completion_tokens(example.prompt, example.completion, tokenizer)
        if not before:
            raise InputError(f"the prompt {example.prompt[:40]!r} has no token. Give one that has.")
        # A completion may spell its end itself; two would teach that the end goes on.
        ids = (*before, *after)
        if end is not None and not (after and after[-1] == end):
            ids = (*ids, end)
        if max_length is not None and len(ids) > max_length:
            too_long.append(index)
            continue
        sequences.append(SupervisedSequence(ids, len(before)))
        kept.append(index)
    if not sequences:
        raise InputError(
            f"none of {len(examples)} examples fits into {max_length} tokens with its answer. Raise the limit: an "
            "example that is cut would lose its answer."
        )
    if model is not None:
        require_known_tokens([one.ids for one in sequences], tokenizer, model)
    return SupervisedExamples(tuple(sequences), tuple(kept), tuple(too_long))
