"""Log-likelihoods of texts after a prompt: to compare choices, and as the loss of right completions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from steerscope.errors import InputError
from steerscope.experiments.evaluation.generation import evaluating, left_padded
from steerscope.experiments.evaluation.shared_prompt import continuation_log_likelihoods, summed_log_likelihoods
from steerscope.experiments.shared_prefix import Prefix
from steerscope.experiments.tasks.supervised import supervise
from steerscope.experiments.tasks.task import TaskExample
from steerscope.finite import require_finite
from steerscope.models.lengths import is_beyond, readable_length, sides, switch_length
from steerscope.models.offloaded import device_of
from steerscope.models.tokens import completion_tokens, pad_token, require_known_tokens

# A continuation: token ids, and where those to be scored begin.
Scored = tuple[Sequence[int], int]


def sequence_log_likelihoods(
    model: nn.Module,
    rows: Sequence[Scored],
    pad: int,
    *,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the summed log-likelihood of each row's scored tokens, in float64 ``(row)``, whatever shares its batch.

    Args:
        model: A causal language model or a wrapper of one.
        rows: Ids and the place of the first scored token, at least 1.
        pad: Any token to fill with.
        batch_size: Rows per batch.
        progress: Called with rows done and in all.

    Returns:
        Sums in nats, at most 0.

    Raises:
        InputError: A log-likelihood is NaN or infinite.

    Cost: one forward pass over all rows, what they all begin with counted once. Logits are computed for the last tokens
    alone where the model can.
    """
    total = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]), i))
    # A steered model edits prompt and completion differently for some positions, so it is told where prompts end.
    told = "prompt_lengths" in inspect.signature(model.forward).parameters
    done = 0

    def batches() -> Iterator[tuple[Prefix, list[int]]]:
        for part in sides(order, lambda i: len(rows[i][0]), switch_length(model)):
            prefix = Prefix.of(model, [rows[i][0] for i in part], [rows[i][1] for i in part], pad)
            for start in range(0, len(part), batch_size):
                yield prefix, part[start : start + batch_size]

    with evaluating(model):
        for prefix, chosen in batches():
            ids, mask = left_padded([rows[i][0][prefix.length :] for i in chosen], pad, device_of(model))
            lengths = [len(rows[i][0]) - rows[i][1] for i in chosen]
            kept = max(lengths) + 1
            given: dict[str, Any] = {"input_ids": ids, "use_cache": False, **prefix.before(mask)}
            # Learned positions count real tokens, not the padding before them.
            given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp_min(0)[:, prefix.length :]
            if told:
                given["prompt_lengths"] = torch.tensor([rows[i][1] for i in chosen], device=ids.device)
            logits = _last_logits(model, given, kept)[:, :-1].float()
            targets = ids[:, -(kept - 1) :]
            columns = torch.arange(kept - 1, 0, -1, device=ids.device)  # distance from the end, 1 for the last
            wanted = columns[None] <= torch.tensor(lengths, device=ids.device)[:, None]
            total[chosen] = summed_log_likelihoods(logits, targets, wanted).cpu()
            require_finite("the log-likelihood of a text", total[chosen])
            done += len(chosen)
            if progress is not None:
                progress(done, len(order))
    return total


def _last_logits(model: nn.Module, given: dict[str, Any], kept: int) -> Tensor:
    """Return logits of the last ``kept`` tokens ``(batch kept vocab)``."""
    try:
        out = model(**given, logits_to_keep=kept)
    except TypeError:  # a model that always computes all of them
        out = model(**given)
    logits: Tensor = out.logits
    return logits[:, -kept:]


def choice_log_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TaskExample],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[list[float], list[int]] | None]:
    """Return, per example, the summed log-likelihood and the number of tokens of every choice.

    The end token is not counted: with it a choice would be judged by whether the model would go on after it.

    Args:
        model: A causal language model or a wrapper of one.
        tokenizer: The model's.
        examples: With choices.
        batch_size: Choices (not examples) per batch.
        max_length: The model's context.
        progress: Called with how much is done and how much there is.

    Returns:
        ``None`` for an example whose prompt does not fit with its longest choice.

    Raises:
        InputError: An example without choices or with a token that the model does not have, or none that fits; a
            log-likelihood that is NaN or infinite.

    Cost: a pass over the prompts and one over the choices; without a cache, a pass over both for every choice.
    """
    limit, switch, pad = readable_length(model, max_length), switch_length(model), pad_token(tokenizer, model)
    rows: list[Scored] = []
    spans: list[range | None] = []
    for example in examples:
        if example.choices is None:
            raise InputError("an example has no choices whose likelihoods could be compared.")
        own = [completion_tokens(example.prompt, choice, tokenizer) for choice in example.choices]
        if limit is not None and max(len(before) + len(after) for before, after in own) > limit:
            spans.append(None)
            continue
        spans.append(range(len(rows), len(rows) + len(own)))
        rows += [((*before, *after), len(before)) for before, after in own]
    if not rows:
        raise InputError(f"no example fits with its choices into the model's context of {limit} tokens.")
    require_known_tokens([ids for ids, _ in rows], tokenizer, model)
    fitting = [span for span in spans if span is not None]
    asked = [(rows[span[0]][0][: rows[span[0]][1]], [rows[k][0][rows[k][1] :] for k in span]) for span in fitting]
    # Keys cached before a switch of the rotary embedding cannot be extended beyond it.
    longest = [len(prompt) + max(map(len, many)) for prompt, many in asked]
    whole = [i for i, (prompt, _) in enumerate(asked) if is_beyond(longest[i], switch) > is_beyond(len(prompt), switch)]
    cached = [i for i in range(len(asked)) if i not in set(whole)]
    shared = continuation_log_likelihoods(
        model, [asked[i] for i in cached], pad, batch_size=batch_size, progress=progress
    )
    if shared is None:
        whole, cached, shared = list(range(len(asked))), [], []
    found = dict(zip(cached, shared, strict=True))
    if whole:
        own_rows = [rows[k] for i in whole for k in fitting[i]]
        sums = iter(sequence_log_likelihoods(model, own_rows, pad, batch_size=batch_size, progress=progress).tolist())
        found |= {i: [next(sums) for _ in fitting[i]] for i in whole}
    following = (found[i] for i in range(len(asked)))
    return [None if span is None else (next(following), [len(rows[k][0]) - rows[k][1] for k in span]) for span in spans]


def completion_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TaskExample],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    ends: bool = True,
) -> float:
    """Return the loss of the right completions: nats per token, all tokens weighing the same.

    The end token counts where it is learned (``ends``). Examples that do not fit are left out, as in training.

    Args:
        model: The model, or a wrapper of it.
        tokenizer: The model's.
        examples: The examples with their right completions.
        batch_size: Sequences per forward pass; it changes no result.
        max_length: The model's context in tokens, ``None`` for no limit.
        ends: Whether an end token is part of each completion.

    Returns:
        A loss in nats per token.

    Raises:
        InputError: No example fits, or one has a token that the model does not have; or the loss is NaN or infinite.
    """
    found = supervise(examples, tokenizer, readable_length(model, max_length), model, ends=ends)
    rows = [(one.ids, one.first_target) for one in found.sequences]
    sums = sequence_log_likelihoods(model, rows, pad_token(tokenizer, model), batch_size=batch_size)
    return float(-sums.sum() / sum(len(ids) - start for ids, start in rows))
