"""Attention with a forward derivative: fused kernels have none, so jvp needs the eager form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.site_map import decoder_of


@contextmanager
def forward_differentiable_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Switch the attention of a model to ``eager`` inside the context and back afterwards.

    ``torch.func.jvp`` raises for fused attention on every device, CPU included.

    Raises:
        UnsupportedModelError: The model's attention cannot be switched to eager.
    """
    config: Any = decoder_of(model).config
    before = config._attn_implementation
    if before == "eager":
        yield model
        return
    switch = getattr(_inner(model), "set_attn_implementation", None)
    try:
        if switch is None:
            raise ValueError("the model has no set_attn_implementation")
        switch("eager")
    except (ValueError, ImportError) as error:
        raise UnsupportedModelError(
            f"attention backend {before!r} has no forward derivative and cannot be switched to 'eager' "
            f"({error}). Load the model with attn_implementation='eager'."
        ) from error
    try:
        yield model
    finally:
        switch(before)


def _inner(model: nn.Module) -> nn.Module:
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model
