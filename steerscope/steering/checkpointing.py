"""Gradient checkpointing: a block that runs again in backward edits the tokens it edited the first time.

Between forward and backward other passes may have run (two forwards before one backward, as preference losses do), so
each checkpointed call of a block keeps its own pass. Blocks in which nothing is trained are not checkpointed at all:
without gradients there is nothing to keep, and gradients would have nowhere to go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steerscope.models.recomputed import ATTRIBUTE, layers_of

if TYPE_CHECKING:
    from steerscope.steering.passes import Passes


class _Remembering:
    """A block's checkpointing function that remembers the forward pass it belongs to."""

    def __init__(self, inner: Callable[..., Any], passes: Passes, block: nn.Module) -> None:
        self.inner, self.passes, self.block = inner, passes, block

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        needs = any(isinstance(value, Tensor) and value.requires_grad for value in args)
        if not needs:
            if not torch.is_grad_enabled() or not self._trains():
                return function(*args)
            # The reentrant kind passes no gradient to parameters unless an input asks for one. It stops right here,
            # at the lowest block that trains.
            args = tuple(
                value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
                for value in args
            )
        under_way = self.passes.current

        def again(*inputs: Any) -> Any:
            with self.passes.reopened(under_way):
                return function(*inputs)

        return self.inner(again, *args)

    def _trains(self) -> bool:
        if any(parameter.requires_grad for parameter in self.block.parameters()):
            return True
        return self.passes.trains_inside(self.block)


def remember_pass(passes: Passes, blocks: Sequence[nn.Module]) -> None:
    """Wrap the checkpointing functions of blocks that have one; does nothing where it is done already.

    Args:
        passes: What knows the tokens of the current forward pass.
        blocks: The model's decoder blocks.
    """
    for block in blocks:
        function = block.__dict__.get(ATTRIBUTE)
        ours = (one for one in layers_of(function) if isinstance(one, _Remembering) and one.passes is passes)
        if function is not None and next(ours, None) is None:
            setattr(block, ATTRIBUTE, _Remembering(function, passes, block))


def forget_pass(passes: Passes, blocks: Sequence[nn.Module]) -> None:
    """Put the blocks' own functions back, as far as they are still ours.

    Args:
        passes: The ones that :func:`remember_pass` was called with.
        blocks: The model's decoder blocks.
    """
    for block in blocks:
        function = block.__dict__.get(ATTRIBUTE)
        if isinstance(function, _Remembering) and function.passes is passes:
            setattr(block, ATTRIBUTE, function.inner)
