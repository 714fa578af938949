"""A generation: where the prompts end, from ``generate``'s own input, and whether a pass belongs to it.

Decoding methods differ in what they compute when: a prompt in pieces, candidates of an assistant with it, one token at
a time, everything again without a cache. The prompt's columns are the first ones in all of them, so a token's place is
known in any pass over the same sequences, and a pass over others (guidance by another prompt) is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.steering.positions import Positions
from steerscope.steering.prompt_end import (
    Columns,
    SpecialTokens,
    as_ids,
    cached_columns,
    checked_lengths,
    real_columns,
    require_no_padding,
)

# Settings of generate under which passes are made over other sequences, or by code that cannot be looked into.
_FOREIGN = {
    "guidance_scale": "computes passes over another sequence",
    "token_healing": "cuts tokens off the prompt",
    "penalty_alpha": "runs code from the hub",
    "dola_layers": "runs code from the hub",
    "num_beam_groups": "runs code from the hub",
    "constraints": "runs code from the hub",
    "force_words_ids": "runs code from the hub",
}
# What these are set to where they do nothing.
_HARMLESS = {"guidance_scale": 1, "num_beam_groups": 1, "penalty_alpha": 0}


@dataclass
class Generation:
    """Sequences being generated.

    Attributes:
        prompt: Where the prompts' columns hold tokens, ``(batch column)``.
        lengths: Tokens of every prompt ``(batch)``, padding not counted.
        ids: Ids ``(batch column)`` or embeddings ``(batch column channel)`` of the prompts, of the last columns alone
            where a cache holds the others; None where ``generate`` begins with a token of its own.
        caches: The caches that hold keys and values of these sequences.
    """

    prompt: Tensor
    lengths: Tensor
    ids: Tensor | None
    caches: WeakSet[Any] = field(default_factory=WeakSet)

    def columns(self, given: Mapping[str, Any], ids: Tensor, rule: str) -> tuple[Columns, Tensor]:
        """Return the columns of a pass of the decoder, and how many tokens its prompts have ``(batch)``.

        Args:
            given: The decoder's arguments by name.
            ids: Its ``input_ids`` or ``inputs_embeds``.
            rule: The positions, for messages.

        Returns:
            The columns, cached ones included, and ``(batch)`` numbers of prompt tokens.

        Raises:
            InputError: The pass is not over these sequences.
        """
        batch, new = ids.shape[:2]
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        start = cached_columns(cache)
        width = self.prompt.shape[1]
        if batch % len(self.prompt):
            raise self._foreign(rule, f"{batch} rows, which are not those of {len(self.prompt)} prompts")
        repeats = batch // len(self.prompt)  # beams, and several sequences of one prompt
        rows = self.prompt.repeat_interleave(repeats, 0).to(ids.device)
        reached = min(start + new, width)
        if start and not (cache in self.caches or (start >= width and not self.caches)):
            raise self._foreign(rule, "a cache of other tokens")
        if start < width:
            self._require_prompt(ids[:, : reached - start], start, repeats, rule)
            is_told = isinstance(mask, Tensor) and mask.dim() == 2
            if is_told and not torch.equal(
                real_columns(mask, batch, start + new, rule)[:, :reached], rows[:, :reached]
            ):
                raise self._foreign(rule, "another attention mask")
        if cache is not None:
            self.caches.add(cache)
        real = torch.nn.functional.pad(rows[:, :reached], (0, start + new - reached), value=True)
        return Columns.of_rows(real, new), self.lengths.repeat_interleave(repeats, 0)

    def _require_prompt(self, found: Tensor, start: int, repeats: int, rule: str) -> None:
        """Refuse tokens that are not the prompts' at these columns."""
        if self.ids is None or found.dim() != self.ids.dim():
            return
        known_from = self.prompt.shape[1] - self.ids.shape[1]
        own = self.ids[:, max(0, start - known_from) :][:, : found.shape[1]]
        if start < known_from or not torch.equal(found, own.repeat_interleave(repeats, 0).to(found)):
            raise self._foreign(rule, "other tokens")

    def _foreign(self, rule: str, what: str) -> InputError:
        return InputError(
            f"generate() made a pass over {what} while it generated from {len(self.prompt)} prompts of "
            f"{self.prompt.shape[1]} columns, so positions {rule!r} cannot be told in it. Generate without the option, "
            "or the logits processor, that makes it, or use an adapter with positions 'all'."
        )


def generation_of(
    model: Any, positions: Positions, args: Sequence[Any], kwargs: dict[str, Any], prompt_lengths: Tensor | None = None
) -> Generation:
    """Return the generation that a call of ``generate`` begins, from its own input.

    Where padding is told by its id, the attention mask that follows is put into ``kwargs``.

    Args:
        model: The language model.
        positions: The rule.
        args: The call's.
        kwargs: The call's.
        prompt_lengths: Tokens of every prompt ``(batch)``, where the input holds more than the prompt.

    Returns:
        What the passes of this call are measured against: its rows, and where their prompts end.

    Raises:
        InputError: The call generates in a way, or from an input, in which the prompts' end cannot be told.
    """
    # The class's signature: the method of one model may have been replaced or compiled.
    call = inspect.signature(type(model).generate).bind_partial(model, *args, **kwargs).arguments
    given = {**{name: value for name, value in call.items() if name != "kwargs"}, **call.get("kwargs", {})}
    settings = _Settings(given, model)
    rule = positions.text
    _require_own_passes(settings, rule)
    tokens = given.get("inputs_embeds")
    if tokens is None:
        tokens = given.get("inputs") if given.get("inputs") is not None else given.get("input_ids")
    mask, cached = given.get("attention_mask"), cached_columns(given.get("past_key_values"))
    if tokens is None:
        one = torch.ones(1, 1, dtype=torch.bool)
        return Generation(one, one.sum(-1), None)
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        what = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"generate() got prompts of {what}; expected token ids (batch, tokens). Pass such a tensor.")
    if mask is None:
        real = _told_by_padding(tokens, settings, counts=positions.rule != "mask" and not cached)
        if not bool(real.all()):
            kwargs["attention_mask"] = real.long()
    else:
        width = mask.shape[1] if isinstance(mask, Tensor) and mask.dim() == 2 and cached else tokens.shape[1]
        real = real_columns(mask, len(tokens), width, rule)
    if cached and positions.need_prompt and prompt_lengths is None:
        raise InputError(
            f"past_key_values hold {cached} columns already, and whether positions {rule!r} took them for prompt or "
            "for completion when they were computed cannot be told. Pass prompt_lengths=(tokens of every prompt) as in "
            "the passes that filled the cache, or generate from all tokens without it."
        )
    lengths = real.sum(-1)
    if prompt_lengths is not None:
        tokens_of_rows = lengths + cached if mask is None else lengths
        lengths = checked_lengths(prompt_lengths, tokens_of_rows, len(real)).to(lengths.device)
    found = Generation(real, lengths, tokens)
    if cached:
        found.caches.add(given["past_key_values"])
        found.ids = tokens[:, tokens.shape[1] - min(tokens.shape[1], real.shape[1]) :]
    return found


class _Settings:
    """What a call of ``generate`` is set to: by the call, its configuration, or the model's own."""

    def __init__(self, given: Mapping[str, Any], model: Any) -> None:
        self.given = given
        self.places = [given.get("generation_config"), getattr(model, "generation_config", None)]
        self.model = model

    def __getitem__(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        return next((found for place in self.places if (found := getattr(place, name, None)) is not None), None)


def _require_own_passes(settings: _Settings, rule: str) -> None:
    """Refuse ways of generating that compute other sequences, or that cannot be looked into.

    Raises:
        InputError: They do.
    """
    for name, why in _FOREIGN.items():
        value = settings[name]
        if value is not None and value is not False and value != _HARMLESS.get(name):
            raise InputError(
                f"{name}={value!r} {why}, in which positions {rule!r} cannot be told. Generate without it, or use an "
                "adapter with positions 'all'."
            )
    given = settings.given
    reasons = {
        "custom_generate": given.get("custom_generate") is not None,
        "cache_implementation='paged'": settings["cache_implementation"] == "paged",
        "assistant_tokenizer": given.get("assistant_tokenizer") is not None,
        "negative_prompt_ids": given.get("negative_prompt_ids") is not None,
    }
    for name, is_given in reasons.items():
        if is_given:
            raise InputError(
                f"generate() got {name}, under which it is not known which tokens a pass computes, so positions "
                f"{rule!r} cannot be told. Generate without it, or use an adapter with positions 'all'."
            )
    if getattr(given.get("generation_config"), "is_assistant", False):
        raise InputError(
            f"the adapter's positions are {rule!r}, and a model that assists another one is not told where its prompt "
            "ends. Let an adapter with positions 'all' assist, or the plain model, or steer the other one too."
        )


def _told_by_padding(tokens: Tensor, settings: _Settings, *, counts: bool) -> Tensor:
    """Return which columns hold tokens where no mask was given, as ``generate`` does: by the padding token's id.

    Args:
        tokens: The prompts.
        settings: Of the call.
        counts: Whether tokens are counted from the row's beginning, so that unseen padding would matter.

    Raises:
        InputError: Padding and text cannot be told apart.
    """
    everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if tokens.dim() != 2 or tokens.is_floating_point():
        return everywhere
    ends = as_ids(settings["eos_token_id"])
    pads = as_ids(settings["pad_token_id"])
    if pads and not pads & ends:
        return tokens != pads.pop()
    if counts:
        special = SpecialTokens.of(settings.model)
        require_no_padding(tokens, SpecialTokens(frozenset(pads or ends or special.pads), special.marks | ends | pads))
    return everywhere
