"""Likelihoods of several continuations of one prompt, whose keys and values are computed once for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.experiments.evaluation.generation import evaluating, left_padded
from steerscope.experiments.shared_prefix import Prefix
from steerscope.finite import require_finite
from steerscope.models.lengths import sides, switch_length
from steerscope.models.offloaded import device_of
from steerscope.models.tokens import padded

# A prompt's tokens, and the tokens of every continuation of it.
Asked = tuple[Sequence[int], Sequence[Sequence[int]]]


def continuation_log_likelihoods(
    model: nn.Module,
    asked: Sequence[Asked],
    pad: int,
    *,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[float]] | None:
    """Return the summed log-likelihood of every continuation, or ``None`` where the model has no cache to share.

    As in generation the prompt is one pass and what follows it another, so that edits that treat the two differently
    do so here.

    Args:
        model: A causal language model or a wrapper of one.
        asked: Prompts with their continuations, none empty, and none that crosses the length where the model's rotary
            embedding switches.
        pad: Any token to fill with.
        batch_size: Continuations per batch; those of one prompt stay together.
        progress: Called with prompts done and in all.

    Returns:
        Sums in nats, per prompt in the order of its continuations.

    Raises:
        InputError: A log-likelihood is NaN or infinite.

    Cost: a pass over every prompt and one over every continuation, instead of a pass over both for each continuation.
    """
    found: list[list[float]] = [[] for _ in asked]
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i][0]), i))
    told = "prompt_lengths" in inspect.signature(model.forward).parameters
    done = 0
    with evaluating(model):
        for part in sides(order, lambda i: len(asked[i][0]), switch_length(model)):
            prompts = [asked[i][0] for i in part]
            prefix = Prefix.of(model, prompts, [len(prompt) for prompt in prompts], pad)
            for chosen in _cut(part, [len(many) for _, many in asked], batch_size):
                sums = _batch(model, [asked[i] for i in chosen], pad, told, prefix)
                if sums is None:
                    return None
                for i in chosen:
                    found[i], sums = sums[: len(asked[i][1])], sums[len(asked[i][1]) :]
                done += len(chosen)
                if progress is not None:
                    progress(done, len(order))
    return found


def _cut(order: Sequence[int], continuations: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Cut prompts into batches of at most so many continuations, and of one prompt at least.

    Yields:
        Indices of the prompts of one batch, in the order given.
    """
    chosen: list[int] = []
    for i in order:
        if chosen and sum(continuations[k] for k in [*chosen, i]) > batch_size:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


def _batch(model: nn.Module, asked: Sequence[Asked], pad: int, told: bool, prefix: Prefix) -> list[float] | None:
    device = device_of(model)
    ids, own = left_padded([prompt[prefix.length :] for prompt, _ in asked], pad, device)
    before = prefix.before(own)
    mask: Tensor = before["attention_mask"]
    extra: dict[str, Any] = {"prompt_lengths": mask.sum(-1)} if told else {}
    places = (mask.cumsum(-1) - 1).clamp_min(0)[:, prefix.length :]
    out = _with_cache(model, {"input_ids": ids, "position_ids": places, **before, **extra})
    cache = getattr(out, "past_key_values", None)
    if not hasattr(cache, "batch_select_indices"):
        return None
    which = torch.tensor([k for k, (_, many) in enumerate(asked) for _ in many], device=device)
    rows = [one for _, many in asked for one in many]
    # On the right: all continuations begin in the same column, and what is filled behind them is never attended to.
    targets, counted = padded(rows, pad, device), padded([[1] * len(row) for row in rows], 0, device)
    logits = out.logits[:, -1:].float()[which]
    if targets.shape[1] > 1:
        logits = torch.cat([logits, _following(model, cache, which, targets, counted, mask, extra)], 1)
    sums: list[float] = summed_log_likelihoods(logits, targets, counted == 1).tolist()
    require_finite("the log-likelihood of a text", *sums)
    return sums


def summed_log_likelihoods(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Return the summed log-likelihood of each row's targets, in float64 ``(row)``.

    Args:
        logits: After what stands before each target, ``row token vocab``.
        targets: The tokens, ``row token``.
        counted: Which of them count, ``row token``.

    Returns:
        Sums in nats.
    """
    scores = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    return torch.where(counted, scores.double(), 0.0).sum(-1)


def _with_cache(model: nn.Module, given: dict[str, Any]) -> Any:
    """Run the prompts; logits of their last token alone, where the model can leave the others out.

    Returns:
        The model's output with its key/value cache, or ``None`` where it takes neither set of arguments.
    """
    given["use_cache"] = True
    for options in ({"logits_to_keep": 1}, {}):
        try:
            return model(**given, **options)
        except TypeError:  # an argument that this model does not take
            continue
    return None


def _following(
    model: nn.Module, cache: Any, which: Tensor, targets: Tensor, counted: Tensor, mask: Tensor, extra: dict[str, Any]
) -> Tensor:
    """Return the logits after every token of the continuations but the last ``(row token vocab)``."""
    cache.batch_select_indices(which)
    given = targets[:, :-1]
    columns = torch.arange(given.shape[1], device=given.device)
    out = model(
        input_ids=given,
        attention_mask=torch.cat([mask[which], counted[:, :-1]], 1),
        position_ids=mask.sum(-1)[which, None] + columns[None],
        past_key_values=cache,
        use_cache=True,
        **{name: value[which] for name, value in extra.items()},
    )
    logits: Tensor = out.logits
    return logits.float()
