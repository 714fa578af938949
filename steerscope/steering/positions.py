"""Which tokens an adapter edits: said in words, computed from where tokens stand in their sequence.

Positions are counted in real tokens, so padding on the left or right changes nothing, and in the whole sequence, so
that a pass over one new token with a cache gives that token the same answer as a pass over everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerscope.errors import InputError, did_you_mean
from steerscope.steering.prompt_end import Columns, as_tensor

WORDS = ("all", "prompt", "completion", "last", "first:n", "last:n", "mask")
_COUNTED = re.compile(r"^(first|last):(\d+)$")


@dataclass(frozen=True)
class Positions:
    """A rule of positions.

    Attributes:
        rule: ``all``, ``prompt``, ``completion``, ``first`` (tokens of the sequence), ``last`` (tokens of the
            prompt) or ``mask`` (given with every pass).
        count: How many, for ``first`` and ``last``.
    """

    rule: str
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> Positions:
        """Read ``all``, ``prompt``, ``completion``, ``last``, ``first:3``, ``last:3`` or ``mask``.

        Returns:
            The rule.

        Raises:
            InputError: None of these.
        """
        if text in ("all", "prompt", "completion", "mask"):
            return cls(text)
        if text == "last":
            return cls("last", 1)
        match = _COUNTED.match(text) if isinstance(text, str) else None
        if match is None or int(match[2]) < 1:
            hint = did_you_mean(str(text), list(WORDS))
            raise InputError(
                f"unknown positions {text!r}.{hint} Valid: {', '.join(WORDS)}, with n at least 1, as in 'first:4'."
            )
        return cls(match[1], int(match[2]))

    @property
    def text(self) -> str:
        """The rule as it is written in a configuration."""
        return self.rule if self.count == 0 or (self.rule, self.count) == ("last", 1) else f"{self.rule}:{self.count}"

    @property
    def need_prompt(self) -> bool:
        """Whether the rule depends on where the prompt ends."""
        return self.rule in ("prompt", "completion", "last")


def token_mask(
    positions: Positions, columns: Columns, *, ends: Tensor | None = None, given: Any = None
) -> Tensor | None:
    """Return which of the tokens that a pass computes are edited.

    Args:
        positions: The rule.
        columns: The pass's columns.
        ends: Tokens of the prompt, padding not counted, of each row or of each token's sequence ``(batch 1)`` or
            ``(batch column)``; for rules that depend on it.
        given: For ``mask``: ``(batch column)``; columns beyond it (tokens generated later) are not edited. Rows are
            repeated where the batch was (beams).

    Returns:
        Booleans ``(batch queries)``, or None for all tokens. (``all`` edits padding as well: nothing reads it.)

    Raises:
        InputError: A length or mask is missing or does not fit.
    """
    if positions.rule == "all":
        return None
    start = columns.real.shape[-1] - columns.queries
    real, order = columns.real[:, start:], columns.order[:, start:]
    if positions.rule == "mask":
        return real & _columns(given, len(real), start, columns.queries).to(real.device)
    if positions.rule == "first":
        return real & (order < positions.count)
    if ends is None:
        raise InputError(
            f"positions {positions.rule!r} need to know where the prompt ends. Pass labels (-100 on the prompt), "
            "prompt_lengths=(tokens of every prompt), or use generate(), whose input is the prompt. A Trainer with "
            "label smoothing, a loss of its own or shift_labels does not hand labels on: let its data_collator put "
            "prompt_lengths into every batch."
        )
    ends = ends.to(order.device)
    inside = order < ends
    if positions.rule == "completion":
        inside = ~inside
    elif positions.rule == "last":
        inside = inside & (order >= ends - positions.count)
    return real & inside


def _columns(given: Any, batch: int, start: int, count: int) -> Tensor:
    """Return the columns ``start`` to ``start + count`` of a given mask, False beyond its end."""
    if given is None:
        raise InputError(
            "positions 'mask' need a mask with every pass; pass steering_mask=(batch, tokens), True where tokens are "
            "edited, to the model or to generate()."
        )
    mask = as_tensor(given)
    if mask is None:
        raise InputError(
            f"steering_mask is {type(given).__name__}; expected a tensor (batch, tokens), True where tokens are edited."
        )
    if mask.dim() != 2 or mask.shape[0] == 0 or batch % mask.shape[0]:
        raise InputError(
            f"steering_mask has shape {tuple(mask.shape)}; expected (batch, tokens) with a batch of {batch}. "
            "Give one row per sequence."
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            "steering_mask holds values other than 0 and 1, and a token is edited or not. Pass True where tokens are "
            "edited (mask > 0.5, for example)."
        )
    rows = (mask != 0).repeat_interleave(batch // mask.shape[0], dim=0)
    found = rows[:, start : start + count]
    return torch.nn.functional.pad(found, (0, count - found.shape[-1]))
