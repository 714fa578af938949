"""Attention with a forward derivative: fused kernels have none, so jvp needs the eager form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.wrappers import decoder_of, language_model


@contextmanager
def forward_differentiable_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Switch the attention of a model to ``eager`` inside the context and back afterwards.

    ``torch.func.jvp`` raises for fused attention on every device, CPU included.

    Yields:
        The model.

    Raises:
        UnsupportedModelError: The model's attention cannot be switched to eager.
    """  # noqa: DOC501  (the ValueError is caught)
    config: Any = decoder_of(model).config
    before = config._attn_implementation
    if before == "eager":
        yield model
        return
    switch = getattr(language_model(model), "set_attn_implementation", None)
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


def keep_softcapping(model: nn.Module) -> None:
    """Switch attention to ``eager`` where the configuration asks for softcapping, which torch's fused one leaves out.

    Newer transformers refuse that pair; older ones (5.17 for one) choose it for Gemma 2 by themselves and compute
    another model, without a word.
    """
    config: Any = decoder_of(model).config
    if getattr(config, "attn_logit_softcapping", None) is not None and config._attn_implementation == "sdpa":
        inner: Any = language_model(model)
        inner.set_attn_implementation("eager")
