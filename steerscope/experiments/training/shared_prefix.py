"""Words that all rows begin with, an instruction for example: computed once per batch instead of once per row.

Keys and values of these tokens are the same in every row, so a first pass over them alone gives a cache, which is
repeated for the rows and which the second pass goes on from; in backward the gradients of all rows meet in it. The loss
is that of whole rows up to rounding. Models for which it is not (a state in place of a cache, dropout, which would be
drawn once for all rows) are trained on whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import Collator
from steerscope.steering.positions import Positions

# Below this a second pass costs more than it saves.
SHORTEST = 8
# Largest relative difference between logits of the two ways that can be rounding.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUNDING_OF_HALF = 0.05
PREFIX = "prefix_ids"


class SharedPrefixTrainer(Trainer):
    """A Trainer whose batches may come with :data:`PREFIX`, what stands before every row."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of a batch from the cache of its prefix."""
        return super().compute_loss(model, with_cache(model, inputs), *args, **kwargs)


def with_cache(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose prefix, if it has one, is replaced by its keys and values, repeated for every row."""
    if PREFIX not in batch:
        return batch
    batch = dict(batch)
    prefix: Tensor = batch.pop(PREFIX)
    told: dict[str, Any] = {}
    if "prompt_lengths" in batch:
        told["prompt_lengths"] = batch["prompt_lengths"].min()[None]  # the prefix ends before any of them
    if "logits_to_keep" in batch:
        told["logits_to_keep"] = 1
    columns = torch.arange(prefix.shape[1], device=prefix.device)[None]
    mask = torch.ones_like(prefix)
    out = model(input_ids=prefix, attention_mask=mask, position_ids=columns, use_cache=True, **told)
    cache = out.past_key_values
    cache.batch_repeat_interleave(batch["input_ids"].shape[0])
    return batch | {"past_key_values": cache, "use_cache": True}


def shared_length(
    model: nn.Module, rows: Sequence[SupervisedSequence], collate: Collator, positions: str, batch_size: int
) -> int:
    """Return how many tokens at the start of all rows can be computed once: 0 where it would not pay or not be right.

    Args:
        model: What is trained.
        rows: All rows of a run.
        collate: Makes batches of whole rows.
        positions: Which tokens are edited: a rule that counts back from the prompt's end keeps these out of the prefix.
        batch_size: Rows per batch.

    Cost: passes over two rows.
    """
    rule = Positions.parse(positions)
    behind = rule.count if rule.rule == "last" else 1
    columns = zip(*(row.ids for row in rows), strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    length = min(common, min(row.first_target for row in rows) - behind)
    if length < SHORTEST or batch_size < 2 or _drops(model):
        return 0
    shortest, longest = min(rows, key=lambda row: len(row.ids)), max(rows, key=lambda row: len(row.ids))
    return length if _is_right(model, [shortest, longest], collate, length) else 0


def _drops(model: nn.Module) -> bool:
    """Whether training draws dropout, in a module or inside attention."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0) or float(getattr(module, "attention_dropout", 0) or 0) > 0
        for module in model.modules()
    )


@torch.no_grad()
def _is_right(model: nn.Module, rows: list[SupervisedSequence], collate: Collator, length: int) -> bool:
    """Whether both ways give the same logits at the supervised tokens of these rows."""
    device = next(model.parameters()).device
    whole, split = (_on(device, one(rows)) for one in (collate, replace(collate, shared=length)))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        first = [_logits(model, batch) for batch in (whole, with_cache(model, split))]
    except (TypeError, AttributeError, NotImplementedError, ValueError, RuntimeError):  # no cache of the usual sort
        return False
    finally:
        for module in training:
            module.training = True
    supervised = whole["labels"][:, 1:] != -100
    kept = min(logits.shape[1] for logits in first) - 1
    expected, found = (logits[:, -kept - 1 : -1][supervised[:, -kept:]] for logits in first)
    limit = _ROUNDING.get(expected.dtype, _ROUNDING_OF_HALF)
    return float((found - expected).abs().max()) <= limit * float(expected.abs().max())


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    given = {name: value for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**given).logits
    return logits
