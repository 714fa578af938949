"""Ask a model the questions of a task, read its answers, and count."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from steerscope.analysis.stopwatch import StageProgress
from steerscope.errors import InputError
from steerscope.experiments.evaluation.generation import Generated, generate
from steerscope.experiments.evaluation.likelihood import choice_log_likelihoods, completion_loss
from steerscope.experiments.runs.accuracy import Accuracy
from steerscope.experiments.runs.evaluation import Evaluation, Generation
from steerscope.experiments.tasks.supervised import answer_tokens
from steerscope.experiments.tasks.task import TaskExample, TaskForm, fingerprint, majority
from steerscope.models.tokens import completion_tokens

Likelihoods = Sequence[tuple[list[float], list[int]] | None]


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    form: TaskForm,
    examples: Sequence[TaskExample],
    *,
    split: str = "test",
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    likelihoods: bool = True,
    progress: StageProgress | None = None,
) -> tuple[Evaluation, list[Generation]]:
    """Measure how often a model is right.

    Accuracy counts greedy generations whose answer, as the task's parser reads it, is the right one. Beside it stand
    the accuracy by likelihood of the choices, the loss of the right completions, and the majority rate.

    Args:
        model: A transformers model, or a wrapper of one (PEFT, steering) with ``generate``.
        tokenizer: The model's.
        form: The task's parser and limits.
        examples: The questions.
        split: Which part they are, for the printed line.
        batch_size: Prompts per batch.
        max_new_tokens: Longest generation; the task's own limit unless given.
        max_length: The model's context.
        likelihoods: Whether the likelihoods of choices and the loss are computed too.
        progress: Called with stages ``generate`` and ``likelihood``.

    Returns:
        The result, and one generation per example in their order.

    Raises:
        InputError: No examples, sizes out of range, nothing fits into the context, or logits are NaN or infinite.

    Cost: generation dominates; likelihoods add a forward pass per choice.
    """
    if not examples:
        raise InputError("got no examples to evaluate on; expected at least one.")
    answers = answer_tokens(form, examples, tokenizer)
    limit = answers.limit if max_new_tokens is None else max_new_tokens

    def stage(name: str) -> Any:
        return None if progress is None else lambda done, total: progress(name, done, total)

    since = time.perf_counter()
    written = generate(
        model,
        tokenizer,
        [one.prompt for one in examples],
        max_new_tokens=limit,
        batch_size=batch_size,
        max_length=max_length,
        progress=stage("generate"),
    )
    seconds = time.perf_counter() - since
    compared: Likelihoods = [None] * len(examples)
    loss = None
    if likelihoods:
        if all(one.choices is not None for one in examples):
            compared = choice_log_likelihoods(
                model, tokenizer, examples, batch_size=batch_size, max_length=max_length, progress=stage("likelihood")
            )
        loss = completion_loss(
            model, tokenizer, examples, batch_size=batch_size, max_length=max_length, ends=answers.ends
        )
    generations = [
        _graded(form, example, one, scores) for example, one, scores in zip(examples, written, compared, strict=True)
    ]
    answer, share = majority(examples)
    n = len(examples)
    return Evaluation(
        task=form.name,
        split=split,
        correct=sum(one.is_right for one in generations),
        n=n,
        majority=share,
        majority_answer=answer,
        answered=sum(one.parsed is not None for one in generations) / n,
        ended=sum(one.ended for one in generations) / n if answers.ends else None,
        too_long=sum(one is None for one in written),
        gold_cut=_gold_cut(form, examples, tokenizer, limit),
        loss=loss,
        choice_sum=_by_likelihood(examples, compared, normalised=False),
        choice_mean=_by_likelihood(examples, compared, normalised=True),
        max_new_tokens=limit,
        batch_size=batch_size,
        generated_tokens=sum(one.num_tokens for one in generations),
        seconds=seconds,
        test_set=fingerprint(examples),
    ), generations


def is_right(form: TaskForm, text: str, example: TaskExample) -> bool:
    """Return whether a generated text holds the right answer.

    Args:
        form: How the task's answers are read and compared.
        text: What the model generated after the prompt.
        example: The example with the right answer.

    Returns:
        ``False`` where no answer can be read.
    """
    found = form.parse(text, example)
    return found is not None and form.same(found, example.answer)


def _graded(
    form: TaskForm, example: TaskExample, one: Generated | None, scores: tuple[list[float], list[int]] | None
) -> Generation:
    return Generation(
        key=example.key,
        prompt=example.prompt,
        text=None if one is None else one.text,
        parsed=None if one is None else form.parse(one.text, example),
        answer=example.answer,
        is_right=one is not None and is_right(form, one.text, example),
        num_tokens=0 if one is None else one.num_tokens,
        ended=one is not None and one.ended,
        choice_log_likelihoods=None if scores is None else tuple(scores[0]),
        choice_tokens=None if scores is None else tuple(scores[1]),
    )


def _by_likelihood(examples: Sequence[TaskExample], compared: Likelihoods, *, normalised: bool) -> Accuracy | None:
    """Count the examples whose right choice is more likely than every other; one that did not fit is wrong.

    Returns:
        The count, or ``None`` where no example was compared.
    """
    if all(scores is None for scores in compared):
        return None
    correct = 0
    for example, scores in zip(examples, compared, strict=True):
        if scores is None or example.answer_index is None:
            continue
        values = [total / (count if normalised else 1) for total, count in zip(*scores, strict=True)]
        right = values.pop(example.answer_index)
        correct += all(right > other for other in values)  # a tie is no answer; NaN is greater than nothing
    return Accuracy(correct, len(examples))


def _gold_cut(form: TaskForm, examples: Sequence[TaskExample], tokenizer: PreTrainedTokenizerBase, limit: int) -> float:
    cut = 0
    for example in examples:
        _, ids = completion_tokens(example.prompt, example.completion, tokenizer)
        if len(ids) > limit:
            text = str(tokenizer.decode(ids[:limit], clean_up_tokenization_spaces=False))
            cut += not is_right(form, text, example)
    return cut / len(examples)
