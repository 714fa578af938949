"""Blocks that change the stream itself: what leaves a block for the stream behind its MLP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.blocks import Block
from steerscope.models.calls import Call, first_tensor, with_first_tensor
from steerscope.site_kinds import Branch


def end_of(block: Block, call: Call | None, h: Tensor, stream: Tensor) -> Tensor:
    """Return what leaves a block, from the stream behind its MLP.

    Where a block has an end of its own (Gemma 4), its code is run for that: on ``h``, with attention writing nothing
    and the MLP writing what is missing from ``stream``. So the end may be anything, but only of these two.

    Args:
        block: The block.
        call: How it was called; needed where it has an end of its own.
        h: The stream entering it, ``batch token d_model``.
        stream: The stream after the MLP added to it, in the same shape.

    Returns:
        What leaves it: the stream itself, its norm, or what the block's own end makes of it.

    Raises:
        UnsupportedModelError: It has an end of its own and was not called.
    """
    if block.end_norm is not None:
        return block.end_norm(stream)
    if not block.description.own_end:
        return stream
    if call is None:
        raise UnsupportedModelError(f"self-check: block {block.index} does not run. Correct the BlockDescription.")
    skip = block.stream_mid(h, torch.zeros_like(h))

    def writes(value: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            first = first_tensor(output)
            assert first is not None
            return with_first_tensor(output, value.reshape(first.shape))

        return hook

    with ExitStack() as stack:
        for branch, value in (
            (Branch.ATTENTION, torch.zeros_like(h)),
            (Branch.MLP, (stream - skip) / block.scale(Branch.MLP)),
        ):
            stack.callback(block.writer(branch).register_forward_hook(writes(value)).remove)
        found = first_tensor(call.again(block.module, h.clone()))
    assert found is not None
    return found
