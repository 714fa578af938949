"""The way back through a frozen linear map, multiplied in bfloat16 where a processor is several times as fast at it.

Nine tenths of a capture's passes are backward passes, and most of a backward pass is products of derivatives with
frozen weights. Derivatives are sketched afterwards, so they need no more digits than a sketch keeps. Forward passes,
losses and outputs are not rounded, nor is the derivative by the residual stream where it only passes a block by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.equivalence.products import rough_dtype, rough_factor
from steerscope.models.blocks import is_transposed, linear_weight

LARGEST_ERROR = 0.1
"""A model whose derivatives move by more than this part of their length is gone back through without rounding."""


def rounds_back(module: nn.Module, dtype: torch.dtype, home: torch.device) -> bool:
    """Say whether derivatives go back through a linear map in bfloat16.

    Args:
        module: A linear map of a block.
        dtype: What features are computed in.
        home: Where they are made.

    Returns:
        ``False`` where they are left to autograd: the device is not faster at it, the map computes in another data
        type or on another device, or it is not certain that ``input @ weight.T + bias`` is all that it does
        (quantised, wrapped by PEFT, hooked by others, offloaded).
    """
    plain = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
    weight: Any = getattr(module, "weight", None)
    if not plain or type(weight) is not nn.Parameter or type(weight.data) is not Tensor or weight.is_meta:
        return False
    changed = "forward" in vars(module) or module._forward_hooks or module._backward_hooks
    faster = weight.dtype == dtype != rough_dtype(dtype, home)
    return faster and weight.device == home and not changed


def rounded_weight(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """Copy the weight of a linear map, as derivatives by its output are multiplied with it.

    Args:
        module: A linear map with plain weights.
        dtype: What features are computed in.

    Returns:
        ``out in``, in bfloat16 where the device multiplies it fast.
    """
    weight = linear_weight(module).detach()
    return rough_factor(weight.T if is_transposed(module) else weight, dtype).contiguous()


class RoundedBack(torch.autograd.Function):
    """A linear map's output, whose derivative goes back to what the map read by a weight of few digits.

    ``few_digits`` is called with each derivative by the output and returns it as it is multiplied, ``token out``.
    """

    @staticmethod
    def forward(
        ctx: Any, read: Tensor, output: Tensor, weight: Tensor, few_digits: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the output as a tensor that is no view of another: a model may go on to change it in place.

        Args:
            ctx: What autograd keeps for the way back.
            read: What the map read.
            output: What it gave, detached.
            weight: ``out in``, as derivatives are multiplied with it.
            few_digits: Rounds a derivative ``... out`` to ``token out``.

        Returns:
            The output.
        """
        ctx.weight, ctx.few_digits, ctx.shape = weight, few_digits, read.shape
        # A copy would leave holes in memory, as large as a third of a batch's activations.
        place = output.untyped_storage(), output.storage_offset(), output.size(), output.stride()
        return output.new_empty(0).set_(*place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Lead a derivative back.

        Args:
            ctx: What autograd kept.
            grad: The derivative by the output.

        Returns:
            The derivative by what was read; none by anything else.
        """
        back = ctx.few_digits(grad) @ ctx.weight
        return back.to(grad.dtype).view(ctx.shape), None, None, None
