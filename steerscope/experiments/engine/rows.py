"""A padded batch of supervised sequences, and where in it the logits are that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.tokens import padded
from steerscope.steering.prompt_end import IGNORED


@dataclass(frozen=True)
class Rows:
    """A padded batch of sequences.

    Padding is on the right: a token of padding then sees real tokens before it, where one on the left sees nothing, of
    which some implementations of attention make NaN.

    Attributes:
        ids: ``(row token)``, without the first ``start`` tokens.
        mask: ``(row column)``, 0 on padding; with a column for each of the first ``start`` tokens.
        prompts: Tokens of every row's prompt ``(row)``.
        targets: ``(row target)``: the supervised tokens, -100 behind the last.
        start: How many tokens, the same in all rows, stand apart.
    """

    ids: Tensor
    mask: Tensor
    prompts: Tensor
    targets: Tensor
    start: int = 0

    @classmethod
    def of(cls, sequences: Sequence[SupervisedSequence], pad: int, device: torch.device, start: int = 0) -> Rows:
        """Pad sequences to one length; the first ``start`` tokens are left out.

        Args:
            sequences: Token ids and the index of the first supervised token, one per row.
            pad: Token that fills rows up on the right.
            device: Where the tensors are made.
            start: Number of tokens that all sequences begin with and a key/value cache holds already.

        Returns:
            The batch; its mask has a column for every token, cached ones included.
        """
        ids = padded([row.ids[start:] for row in sequences], pad, device)
        mask = padded([[1] * len(row.ids) for row in sequences], 0, device)
        prompts = torch.tensor([row.first_target for row in sequences], device=device)
        targets = padded([row.ids[row.first_target :] for row in sequences], IGNORED, device)
        return cls(ids, mask, prompts, targets, start)

    def take(self, places: Tensor) -> Rows:
        """Return the rows at some places, each as often as it is named."""
        ids, mask, prompts, targets = (values[places] for values in (self.ids, self.mask, self.prompts, self.targets))
        return replace(self, ids=ids, mask=mask, prompts=prompts, targets=targets)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The rows as a steered model is called with them."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "prompt_lengths": self.prompts}

    @property
    def is_target(self) -> Tensor:
        """Where ``targets`` holds a token, ``(row target)``."""
        return self.targets != IGNORED

    @property
    def wanted(self) -> Tensor:
        """The supervised tokens, row by row, ``(supervised)``."""
        return self.targets[self.is_target]

    def predicting(self) -> tuple[Tensor, Tensor]:
        """Return row and token of ``ids`` that predict each supervised token, ``(supervised)`` each."""
        row, target = self.is_target.nonzero(as_tuple=True)
        return row, self.prompts[row] - 1 + target - self.start


def per_target(rows: Rows, values: Tensor) -> Tensor:
    """Return values of supervised tokens in the places of these, ``(row target)``, 0 elsewhere.

    Args:
        rows: The batch.
        values: One number per supervised token of the batch, row by row.

    Returns:
        Values of shape ``(row target)``, padded with 0 on the right.
    """
    return values.new_zeros(rows.targets.shape).masked_scatter(rows.is_target, values)


def run(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any = None, **more: Tensor) -> Tensor:
    """Run a model on rows padded on the right; return its logits.

    Args:
        model: A causal language model or a wrapper of one.
        ids: ``(row token)``.
        mask: ``(row column)``, 0 on padding; cached columns included.
        cache: Keys and values of what stands before; without them there is nothing.
        more: What else the wrapper takes.

    Returns:
        Logits ``(row token vocab)``, or of the selected positions alone ``(1 selected vocab)``.
    """
    positions = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1], device=ids.device).expand_as(ids)
    cached: dict[str, Any] = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}
    logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions, **cached, **more).logits
    return logits


def single_precision(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: sums over a vocabulary in half precision are worthless."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
