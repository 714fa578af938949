"""How much memory a pass with gradients will take, said before the long work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerscope.models.blocks import linear_shape
from steerscope.models.packed import compute_dtype, stored_bytes

if TYPE_CHECKING:
    from steerscope.models.load import LoadedModel

# Logits, their log-probabilities and the gradient, in float32.
_PER_LOGIT = 12
# A trained number's gradient and the two moments of Adam, and the value before training, in float32.
_PER_TRAINED = 16


@dataclass(frozen=True)
class Memory:
    """What a run will take, roughly (within a factor of two), in bytes.

    Attributes:
        weights: The model.
        batch: What one batch's passes keep until their gradients are computed.
        kept: What stays: a ranking's features, an optimizer's state.
        free: What the device has left, the weights in it already; ``None`` where that is not known.
    """

    weights: int
    batch: int
    kept: int
    free: int | None

    @property
    def is_short(self) -> bool:
        """Whether it is more than there is."""
        return self.free is not None and self.batch + self.kept > self.free

    def __str__(self) -> str:
        parts = f"weights {_told(self.weights)}, one batch {_told(self.batch)}, what stays {_told(self.kept)}"
        text = f"memory about {_told(self.weights + self.batch + self.kept)}: {parts}"
        if self.is_short:
            text += f"; only {_told(self.free or 0)} are free beside the weights, so take a smaller [[batch_size]]"
        return text


def memory_needed(loaded: LoadedModel, tokens: int, logits: int, *, kept: int = 0, trained: int = 0) -> Memory:
    """Estimate the memory of passes forward and backward.

    Args:
        loaded: The model, in memory.
        tokens: Tokens of the largest batch, padding included.
        logits: Of how many of them logits are computed.
        kept: Bytes that stay from batch to batch.
        trained: How many numbers are trained.

    Returns:
        The estimate. Attention's own weights are left out: its usual kernels do not keep them.
    """
    width = compute_dtype(loaded.model).itemsize
    # With frozen weights norms, activations and attention keep about as many numbers as the linear maps read and write:
    # between 0.6 and 1.5 times as many, by family.
    per_token = sum(sum(linear_shape(module)) for module in loaded.site_map.linear_maps().values())
    vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    return Memory(
        weights=sum(stored_bytes(value) for value in loaded.model.parameters()),
        batch=tokens * per_token * width + logits * vocabulary * _PER_LOGIT,
        kept=kept + trained * _PER_TRAINED,
        free=_free(loaded.device),
    )


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        import psutil  # comes with accelerate
    except ImportError:
        return None
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def _told(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{max(size, 1e5) / 1e6:.1f} MB"
