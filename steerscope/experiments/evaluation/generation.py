"""Greedy generation in batches: left padding, stops at the end token, the same text in any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from steerscope.errors import InputError
from steerscope.experiments.shared_prefix import Prefix
from steerscope.experiments.tasks.supervised import end_token
from steerscope.finite import require_finite
from steerscope.models.head import contiguous_head
from steerscope.models.lengths import is_beyond, readable_length, sides, switch_length
from steerscope.models.offloaded import device_of, require_runs
from steerscope.models.tokens import pad_token, padded, require_known_tokens, text_tokens
from steerscope.models.virtual_tokens import require_no_virtual_tokens
from steerscope.models.wrappers import in_evaluation_mode, language_model
from steerscope.steering import SteeringModel


@dataclass(frozen=True)
class Generated:
    """What a model wrote after one prompt.

    Attributes:
        text: The new tokens as text, up to the end token; never the prompt.
        num_tokens: How many tokens were written, the end token included.
        ended: Whether the end token came before the limit.
    """

    text: str
    num_tokens: int
    ended: bool


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generated | None]:
    """Continue prompts greedily.

    Prompts of similar length share a batch, which is padded on the left to its longest only, so that all
    continuations start at the same column. In float32 batch size and padding move logits by rounding alone; the text
    differs only where two tokens tie to about 1e-6. In bfloat16 such ties are frequent: there the batch size is part
    of the result.

    Args:
        model: A transformers model, or a wrapper with its ``generate`` (PEFT, steering).
        tokenizer: The model's.
        prompts: What to continue, as they stand; no chat template is applied.
        max_new_tokens: Longest continuation.
        batch_size: Prompts per batch.
        max_length: Longest sequence, at most (and by default) the model's context; a prompt that leaves no room for
            ``max_new_tokens`` is not run.
        progress: Called with prompts done and in all.

    Returns:
        One entry per prompt in their order; ``None`` for those that do not fit, since cutting a prompt would ask
        another question.

    Raises:
        InputError: No prompts, sizes below 1, no end token, a prompt without tokens or with one that the model does not
            have, or none that fits; logits that are NaN or infinite.

    Cost: ``max_new_tokens`` steps per batch at most; keys and values of one batch in memory. What all prompts begin
    with is computed once.
    """
    if not prompts or batch_size < 1 or max_new_tokens < 1:
        raise InputError(
            f"got {len(prompts)} prompts, [[batch_size]] {batch_size}, [[max_new_tokens]] {max_new_tokens}; expected "
            "at least 1 of each."
        )
    ids = [text_tokens(prompt, tokenizer) for prompt in prompts]
    fitting = fitting_prompts(ids, max_new_tokens, readable_length(model, max_length))
    require_known_tokens([ids[i] for i in fitting], tokenizer, model)
    ends, pad = _ends(model, tokenizer), pad_token(tokenizer, model)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
    )
    found: list[Generated | None] = [None] * len(ids)
    order = sorted(fitting, key=lambda i: (len(ids[i]), i))
    with evaluating(model), _own_settings_put_aside(model):
        done = 0
        for part, size in _together(order, ids, max_new_tokens, batch_size, switch_length(model)):
            rows = [ids[i] for i in part]
            prefix = Prefix.of(model, rows, [len(row) for row in rows], pad) if size > 1 else Prefix.none(model)
            for start in range(0, len(part), size):
                chosen = part[start : start + size]
                rest, mask = left_padded([ids[i][prefix.length :] for i in chosen], pad, device_of(model))
                inputs = torch.cat([prefix.ids.expand(len(chosen), -1), rest], 1)
                watch = _Watch()
                given = prefix.before(mask)
                given.pop("use_cache", None)  # the configuration says so; transformers warns of what is said twice
                if isinstance(model, SteeringModel):  # what the cache holds was computed as part of the prompt
                    given["prompt_lengths"] = given["attention_mask"].sum(-1)
                out = model.generate(  # type: ignore[operator]
                    input_ids=inputs,
                    generation_config=config,
                    logits_processor=LogitsProcessorList([watch]),
                    **given,
                )
                for i, row in zip(chosen, out[:, inputs.shape[1] :].tolist(), strict=True):
                    found[i] = _read(row, ends, tokenizer)
                watch.require_finite([_require(found[i]).num_tokens for i in chosen])
                done += len(chosen)
                if progress is not None:
                    progress(done, len(order))
    return found


class _Watch(LogitsProcessor):
    """Keeps the largest logit of every step and row: of logits that are NaN, greedy decoding would take token 0."""

    def __init__(self) -> None:
        self.largest: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return ``scores (row vocab)`` as they are."""
        self.largest.append(scores.amax(-1))
        return scores

    def require_finite(self, lengths: Sequence[int]) -> None:
        """Refuse what was chosen by a logit that is NaN, among the first ``lengths`` tokens of the rows.

        Raises:
            InputError: There is such a token.
        """
        if self.largest:
            steps = torch.stack(self.largest, 1).cpu()
            kept = torch.arange(steps.shape[1])[None] < torch.tensor(lengths)[:, None]
            require_finite("the largest logit of a token to be generated", steps[kept])


def _require(found: Generated | None) -> Generated:
    assert found is not None
    return found


def _together(
    order: Sequence[int], ids: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int, switch: int | None
) -> list[tuple[list[int], int]]:
    """Return prompts that may share batches, each with its batch size; a prompt that may not is alone in its batches.

    Where the rotary embedding of the model switches at some length, that is a prompt whose answer may cross it.
    """
    last = {i: len(ids[i]) + max_new_tokens - 1 for i in order}  # the last token written is not read
    crossing = [i for i in order if is_beyond(last[i], switch) and not is_beyond(len(ids[i]), switch)]
    others = [i for i in order if i not in set(crossing)]
    parts = [(part, batch_size) for part in sides(others, lambda i: len(ids[i]), switch)]
    return parts + ([(crossing, 1)] if crossing else [])


def fitting_prompts(ids: Sequence[Sequence[int]], max_new_tokens: int, max_length: int | None) -> list[int]:
    """Return which prompts leave room for an answer in the model's context.

    Args:
        ids: Token ids of each prompt.
        max_new_tokens: Most tokens that an answer may have.
        max_length: The model's context in tokens, ``None`` for no limit.

    Returns:
        Indices of the prompts that fit, in order.

    Raises:
        InputError: None does, or one has no token.
    """
    if not all(ids):
        raise InputError("a prompt has no token; give prompts that have.")
    room = None if max_length is None else max_length - max_new_tokens
    fitting = [i for i, one in enumerate(ids) if room is None or len(one) <= room]
    if not fitting:
        raise InputError(
            f"no prompt fits: the shortest has {min(map(len, ids))} tokens, the model's context is {max_length} and "
            f"{max_new_tokens} are for the answer. Lower [[max_new_tokens]] or take a model with a longer context."
        )
    return fitting


def _read(row: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase) -> Generated:
    """Cut at the first end token: what stands behind it is padding of the batch.

    Returns:
        The text, the number of its tokens with the end token, and whether it ended by itself.
    """
    length = next((k for k, token in enumerate(row) if token in ends), len(row))
    ended = length < len(row)
    # Cleaning up spaces would change the text that is graded.
    text = str(tokenizer.decode(row[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return Generated(text, length + ended, ended)


def _ends(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the trained end token and those that the model's own settings name."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    others = own if isinstance(own, list | tuple) else [] if own is None else [own]
    return {end_token(tokenizer), *map(int, others)}


@contextmanager
def _own_settings_put_aside(model: nn.Module) -> Iterator[None]:
    """Keep the model's own generation settings out: they fill in what is not said, penalties and bans for example."""
    inner: Any = language_model(model)
    before = getattr(inner, "generation_config", None)
    if before is None:
        yield
        return
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask ``(batch token)``, filled on the left to the longest row.

    Args:
        rows: Token ids, one sequence per row.
        pad: Token that fills rows up; masked, so that any will do.
        device: Where the tensors are made.

    Returns:
        Ids and mask, 1 on real tokens, as wide as the longest row.

    Example:
        >>> ids, mask = left_padded([[5, 6], [7]], pad=0, device=torch.device("cpu"))
        >>> ids.tolist(), mask.tolist()
        ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    # From lengths, never by comparing with the padding token, which may be the end token.
    return padded(rows, pad, device, "left"), padded([[1] * len(row) for row in rows], 0, device, "left")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and gradients, and give back the mode of every module afterwards.

    Raises:
        InputError: Weights have no values, or PEFT puts virtual tokens before every row.
    """
    require_runs(model)
    require_no_virtual_tokens(model, "results would depend on the batch that a text is in")
    with in_evaluation_mode(model), contiguous_head(model), torch.inference_mode():
        yield
