"""float64 that means float64: a context that lifts the float32 casts hidden inside transformers models.

RMSNorm, rotary embeddings and some softmaxes compute in float32 whatever the model's dtype. In a float64
model that caps the accuracy near 1e-7, where a remainder slope of 2 breaks down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steerscope.errors import InputError

_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}
_LOWER = {torch.float32, torch.float16, torch.bfloat16}
_PRODUCTS = {Tensor.matmul, Tensor.__matmul__, torch.matmul}


class _KeepDouble(TorchFunctionMode):
    """Drops every request to turn a float64 tensor into a lower precision.

    Frequencies that stay float64 meet positions in float32 (whole numbers, exact in both). Older transformers multiply
    the two by a matrix product, which takes no two data types: there the other factor becomes float64.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64:
            if func in _CASTS:
                return args[0]
            if func in (Tensor.to, Tensor.type) or kwargs.get("dtype") in _LOWER:
                args = tuple(torch.float64 if _is_lower(value) else value for value in args)
                kwargs = {k: torch.float64 if _is_lower(value) else value for k, value in kwargs.items()}
        if func in _PRODUCTS and len({value.dtype for value in args if isinstance(value, Tensor)}) > 1:
            args = tuple(value.double() if isinstance(value, Tensor) else value for value in args)
        return func(*args, **kwargs)


def _is_lower(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _LOWER


@contextmanager
def true_float64(model: nn.Module) -> Iterator[nn.Module]:
    """Run a float64 model without hidden float32 casts inside the context.

    Args:
        model: A model whose floating-point parameters are all float64 (``model.double()``).

    Yields:
        The model.

    Raises:
        InputError: A parameter has another dtype; the message names it.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not torch.float64:
            raise InputError(
                f"true_float64 needs a float64 model, but {name!r} is {parameter.dtype}. Call model.double() first."
            )
    with _KeepDouble():
        yield model
