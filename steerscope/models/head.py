"""Compute the logits at full speed: make the input of the output embedding (the LM head) contiguous."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def contiguous_head(model: nn.Module) -> Iterator[None]:
    """Make the input of the output embedding (the LM head) contiguous inside the context.

    transformers cuts a batch to the tokens whose logits are kept by a slice. torch multiplies such a slice one row of
    the batch at a time, which on a CPU takes several times as long as one product over a copy of it. Nothing else
    changes; what has no output embedding is left as it is.

    Args:
        model: A language model or a wrapper of one.
    """
    inner = next((one for one in model.modules() if isinstance(one, PreTrainedModel)), None)
    head = None if inner is None else inner.get_output_embeddings()
    if not isinstance(head, nn.Module):
        yield
        return

    def side_by_side(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].contiguous(), *args[1:]) if args else args

    with head.register_forward_pre_hook(side_by_side):
        yield
