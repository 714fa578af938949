"""From examples to token sequences: what is supervised, how answers are read, batches with padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steerscope.analysis.data.examples import Example
from steerscope.errors import InputError, shortened
from steerscope.models.lengths import is_beyond, require_one_side, switch_length
from steerscope.models.load import LoadedModel, require_loaded
from steerscope.models.tokens import completion_tokens, require_known_tokens


class OutputMode(StrEnum):
    """What the outputs z of an example are."""

    CHOICE_LOGITS = "choice_logits"
    """Logits of the choices' tokens at one position (every choice is one token after a common prefix)."""
    CHOICE_LIKELIHOODS = "choice_likelihoods"
    """Log-likelihoods of the choices, each run as a sequence of its own."""
    COMPLETION = "completion"
    """Projections of the logits at the completion's positions (no choices)."""


@dataclass(frozen=True)
class TokenSequence:
    """One run of the model.

    Attributes:
        ids: Token ids, prompt and (part of the) completion.
        example: Index of the example it belongs to.
        choice: Which choice it spells out; 0 where the example has one sequence.
        first_target: Position of the first supervised token; the logits one position earlier predict it. In
            mode ``choice_logits`` it equals ``len(ids)``: the answer itself is not fed.
    """

    ids: tuple[int, ...]
    example: int
    choice: int
    first_target: int


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        mode: What the outputs are.
        sequences: All runs, grouped by example.
        choice_tokens: Per example the token of every choice (mode ``choice_logits`` only, else empty).
        answers: Per example the index of the right choice (0 in mode ``completion``).
        num_choices: Per example the number of choices (0 in mode ``completion``).
        switch: Length on both sides of which rows must not share a batch, if there is one
            (:func:`~steerscope.models.lengths.switch_length`).
    """

    mode: OutputMode
    sequences: tuple[TokenSequence, ...]
    choice_tokens: tuple[tuple[int, ...], ...]
    answers: tuple[int, ...]
    num_choices: tuple[int, ...]
    switch: int | None = None

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.answers)

    @property
    def num_tokens(self) -> int:
        """Number of tokens that one pass over all sequences runs, without padding."""
        return sum(len(s.ids) for s in self.sequences)


@dataclass(frozen=True)
class Batch:
    """Padded sequences. All tensors are ``batch token`` integers but ``example``, ``choice`` (``batch``)."""

    ids: Tensor
    mask: Tensor
    position_ids: Tensor
    first_target: Tensor
    length: Tensor
    offset: Tensor
    example: Tensor
    choice: Tensor

    def targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(row, position of the logits, target token)`` of every supervised token, row by row."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        relative = columns[None] - self.offset[:, None]
        wanted = (relative >= self.first_target[:, None]) & (relative < self.length[:, None])
        row, column = wanted.nonzero(as_tuple=True)
        return row, column - 1, self.ids[row, column]

    def last(self) -> Tensor:
        """Return the position of each row's last real token."""
        return self.offset + self.length - 1


def encode_for(loaded: LoadedModel, examples: Sequence[Example]) -> Encoded:
    """Tokenise examples for a model: as :func:`encode`, and checked against what the model can read.

    Args:
        loaded: The model.
        examples: All with choices, or all without.

    Returns:
        The sequences with the way that outputs are read, and the length at which batches must not mix.

    Raises:
        InputError: As :func:`encode`; a token that the model has no embedding for; choices of one example on both sides
            of the length where its rotary embedding switches.
    """
    require_loaded(loaded)
    encoded = encode(examples, loaded.tokenizer, loaded.max_length)
    every = [sequence.ids for sequence in encoded.sequences]
    require_known_tokens([*every, *encoded.choice_tokens], loaded.tokenizer, loaded.model)
    switch = switch_length(loaded.model)
    if switch is not None:
        for example in range(encoded.num_examples):
            own = [len(sequence.ids) for sequence in encoded.sequences if sequence.example == example]
            require_one_side(own, switch, f"choices of example {example + 1}", "Shorten its prompt or drop it.")
    return replace(encoded, switch=switch)


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
    """Tokenise examples and decide how their outputs are read.

    The prompt's tokens are its own, those that a model is given which is to go on from it: prompt and completion are
    tokenised together where that leaves them as they are, else apart.

    Args:
        examples: All with choices, or all without.
        tokenizer: The model's tokenizer; its special tokens at the start are kept, an end token is not fed.
        max_length: The model's context, or ``None`` for no limit.

    Returns:
        The sequences with the way that outputs are read: logits of choices, likelihoods of choices, or completions.

    Raises:
        InputError: A text longer than the context, or a completion that adds no token of its own.
    """
    if not examples:
        raise InputError("got no examples, expected at least one.")
    with_choices = examples[0].choices is not None
    parts = [[completion_tokens(e.prompt, c, tokenizer) for c in (e.choices or (e.completion,))] for e in examples]
    texts = [[before + after for before, after in many] for many in parts]
    starts = [len(many[0][0]) for many in parts]
    for index, (many, start) in enumerate(zip(texts, starts, strict=True)):
        _check_lengths(examples[index], index, many, start, max_length)
    answers = tuple(e.answer_index or 0 for e in examples)
    num_choices = tuple(len(e.choices) if e.choices else 0 for e in examples)
    one_token = with_choices and all(_differ_in_last(many) for many in texts)
    if one_token:
        sequences = tuple(
            TokenSequence(tuple(many[0][:-1]), index, 0, len(many[0]) - 1) for index, many in enumerate(texts)
        )
        tokens = tuple(tuple(text[-1] for text in many) for many in texts)
        return Encoded(OutputMode.CHOICE_LOGITS, sequences, tokens, answers, num_choices)
    sequences = tuple(
        TokenSequence(tuple(text), index, choice, starts[index])
        for index, many in enumerate(texts)
        for choice, text in enumerate(many)
    )
    mode = OutputMode.CHOICE_LIKELIHOODS if with_choices else OutputMode.COMPLETION
    return Encoded(mode, sequences, (), answers, num_choices)


def batches(
    encoded: Encoded,
    *,
    batch_size: int,
    pad_id: int,
    device: torch.device,
    padding_side: str = "right",
    examples: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Return padded batches of at most ``batch_size`` sequences, examples of similar length together.

    All sequences of one example share a batch (an example with more sequences than ``batch_size`` has a batch
    of its own), and no batch has sequences on both sides of ``encoded.switch``. Position ids count real tokens only, so
    that left padding changes no number (GPT-2's learned positions).

    Args:
        encoded: The examples as tokens.
        batch_size: Most sequences per batch.
        pad_id: Token that fills rows up; masked, so that any will do.
        device: Where the tensors are made.
        padding_side: ``right`` or ``left``.
        examples: Indices of the examples to take; without it all.

    Returns:
        Batches in order of length, not of the examples; ``Batch.example`` says whose rows they are.
    """
    grouped = _by_example(encoded)
    chosen = list(grouped) if examples is None else list(examples)
    chosen.sort(key=lambda e: (max(len(s.ids) for s in grouped[e]), e))
    groups: list[list[int]] = []
    rows = 0
    for example in chosen:
        own, first = grouped[example], grouped[groups[-1][0]] if groups else []
        beyond = is_beyond(len(own[0].ids), encoded.switch)
        if not groups or rows + len(own) > batch_size or beyond != is_beyond(len(first[0].ids), encoded.switch):
            groups.append([])
            rows = 0
        groups[-1].append(example)
        rows += len(own)
    return batches_of(encoded, groups, pad_id=pad_id, device=device, padding_side=padding_side)


def batches_of(
    encoded: Encoded,
    groups: Iterable[Sequence[int]],
    *,
    pad_id: int,
    device: torch.device,
    padding_side: str = "right",
) -> Iterator[Batch]:
    """Yield the padded batches of given groups of examples; see :func:`batches`.

    Args:
        encoded: The examples as tokens.
        groups: The examples of each batch.
        pad_id: Token that fills rows up.
        device: Where the tensors are made.
        padding_side: ``right`` or ``left``.

    Yields:
        One batch per group.
    """
    grouped = _by_example(encoded)
    for rows in ([sequence for example in group for sequence in grouped[example]] for group in groups):
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        offsets = [width - len(row.ids) if padding_side == "left" else 0 for row in rows]
        for k, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
            ids[k, offset : offset + len(row.ids)] = torch.tensor(row.ids)
            mask[k, offset : offset + len(row.ids)] = 1

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device)

        yield Batch(
            ids=ids.to(device),
            mask=mask.to(device),
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0).to(device),
            first_target=column([row.first_target for row in rows]),
            length=column([len(row.ids) for row in rows]),
            offset=column(offsets),
            example=column([row.example for row in rows]),
            choice=column([row.choice for row in rows]),
        )


def _by_example(encoded: Encoded) -> dict[int, list[TokenSequence]]:
    grouped: dict[int, list[TokenSequence]] = {}
    for sequence in encoded.sequences:
        grouped.setdefault(sequence.example, []).append(sequence)
    return grouped


def _differ_in_last(texts: list[list[int]]) -> bool:
    """Whether all token lists agree but for their last token, in which they all differ."""
    heads = {tuple(text[:-1]) for text in texts}
    return len(heads) == 1 and len({text[-1] for text in texts}) == len(texts) and len(texts[0]) > 1


def _check_lengths(example: Example, index: int, texts: list[list[int]], start: int, limit: int | None) -> None:
    shown = shortened(example.prompt, 40)
    if any(len(text) <= start for text in texts):
        raise InputError(
            f"example {index + 1} ({shown!r}) has no supervised token: its completion adds no token to the "
            "prompt. Give a completion that is more than white space or special tokens."
        )
    if start == 0:
        raise InputError(
            f"example {index + 1} ({shown!r}): the first token would have to be predicted from nothing. "
            "Give a prompt that is at least one token of its own."
        )
    if len({tuple(text) for text in texts}) < len(texts):
        raise InputError(
            f"example {index + 1} ({shown!r}) has two choices that this model's tokenizer spells with the same "
            f"tokens: {list(example.choices or ())}. Give choices that it can tell apart."
        )
    longest = max(len(text) for text in texts)
    if limit is not None and longest > limit:
        raise InputError(
            f"example {index + 1} ({shown!r}) has {longest} tokens with its completion; the model's context "
            f"is {limit}. Shorten or drop it: cutting it here would lose its answer."
        )
