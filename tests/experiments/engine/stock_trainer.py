"""The stock Trainer's way: batches padded on the left, and the mean loss of the supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steerscope.experiments.engine.rows import IGNORED
from steerscope.experiments.tasks.supervised import SupervisedSequence


@dataclass(frozen=True)
class Collator:
    """Makes a batch of sequences, padded on the left, so that what is supervised stands at the end of every row.

    Logits are then asked for at these last tokens alone, where the model can (``logits_to_keep``).

    Attributes:
        pad: Any token; the mask hides it.
        keeps: Whether the model takes ``logits_to_keep``.
        told: Whether the model takes ``prompt_lengths`` (a steered one).
    """

    pad: int
    keeps: bool
    told: bool

    def __call__(self, rows: Sequence[SupervisedSequence]) -> dict[str, Any]:
        """Return ``input_ids``, ``attention_mask``, ``position_ids`` and ``labels``, all ``(batch token)``."""
        width = max(len(row.ids) for row in rows)
        missing = [width - len(row.ids) for row in rows]
        mask = torch.tensor([[0] * m + [1] * (width - m) for m in missing])
        labels = [
            [IGNORED] * (m + row.first_target) + list(row.ids[row.first_target :])
            for m, row in zip(missing, rows, strict=True)
        ]
        ids = [[self.pad] * m + list(row.ids) for m, row in zip(missing, rows, strict=True)]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor(ids),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
            "labels": torch.tensor(labels),
        }
        if self.keeps:
            # One more: the token before the first supervised one predicts it.
            batch["logits_to_keep"] = max(len(row.ids) - row.first_target for row in rows) + 1
        if self.told:
            batch["prompt_lengths"] = torch.tensor([row.first_target for row in rows])
        return batch


def supervised_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the mean negative log-likelihood of the supervised tokens of a batch, in nats; the Trainer's loss.

    Args:
        outputs: With ``logits (batch kept vocab)`` of the last ``kept`` tokens.
        labels: ``(batch token)``; -100 where nothing is supervised.
        num_items_in_batch: Supervised tokens of the whole step, which may be several batches.
    """
    logits = outputs.logits
    targets = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    # In single precision at least: sums over a vocabulary in half precision are worthless.
    flat = logits[:, :-1].flatten(0, 1)
    flat = flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat
    total = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    items = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / items
