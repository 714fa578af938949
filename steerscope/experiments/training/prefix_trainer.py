"""Training on batches whose common start is computed once; see :mod:`steerscope.experiments.shared_prefix`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from steerscope.experiments.shared_prefix import cache_of
from steerscope.finite import require_finite
from steerscope.models.head import contiguous_head

PREFIX = "prefix_ids"


class SharedPrefixTrainer(Trainer):
    """A Trainer whose batches may come with :data:`PREFIX`, what stands before every row."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of a batch from the cache of its prefix.

        Raises:
            InputError: It is NaN or infinite.
        """
        with contiguous_head(model):
            found = super().compute_loss(model, with_cache(model, inputs), *args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        if self.state.global_step == 0:  # nothing has been learned yet: this is the model itself
            require_finite("the loss of the first step", loss.detach())
        advice = diverged(self.args.learning_rate)
        require_finite(f"the loss of step {self.state.global_step + 1}", loss.detach(), advice=advice)
        return found


def diverged(learning_rate: float) -> str:
    """Return what to say of a training whose numbers are none any more."""
    return f"Training diverged with learning rate {learning_rate:g}: give a smaller [[learning_rate]], or 'auto'."


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
    cache = cache_of(model, prefix, batch["input_ids"].shape[0], told)
    return batch | {"past_key_values": cache, "use_cache": True}
