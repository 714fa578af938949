"""Root mean square norms of a frozen model in fewer passes over memory: on a CPU they wait for memory, not for sums.

transformers' modules keep every step of a norm for its backward pass. With a frozen weight, its gradient is one formula
of what enters and of one number per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

# Where modules keep what they add to the mean square.
_EPSILON = ("variance_epsilon", "eps", "epsilon")
# Largest difference from the module, relative to the largest value, that can be rounding.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


class _RootMeanSquareNorm(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + epsilon) * weight``, with a gradient for ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return the norm of ``x (... channel)``."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient for what entered."""
        x, weight, inverse = ctx.saved_tensors
        scaled = gradient * weight
        along = torch.linalg.vecdot(scaled, x).unsqueeze(-1)
        along = along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return scaled.mul_(inverse).addcmul_(x, along), None, None


class FusedNorms:
    """The norms of a model that compute faster inside :meth:`acting`, with the same numbers up to rounding.

    Which they are is found out by trying: a module with one weight and an epsilon that gives the root mean square norm
    of random numbers, with its weight as it is or with one added to it (Gemma). Any other is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        """Try out the norms of a model on the CPU, frozen and in float32 or float64.

        Args:
            model: A language model or a wrapper of one.

        Cost: each norm is computed for two rows.
        """
        self._found: list[tuple[nn.Module, Callable[[], Tensor], float]] = []
        # A block under gradient checkpointing runs again in backward, outside of any context.
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            return
        for module in model.modules():
            if (known := _as_norm(module)) is not None:
                self._found.append((module, *known))

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Compute the norms faster inside the context, those whose weights are not trained."""
        norms = [
            one for one in self._found if not next(one[0].parameters()).requires_grad and "forward" not in vars(one[0])
        ]
        for module, weight, epsilon in norms:
            module.forward = _forward_of(weight(), epsilon)
        try:
            yield
        finally:
            for module, _, _ in norms:
                del module.forward  # the class's own method shows again


def _forward_of(weight: Tensor, epsilon: float) -> Callable[..., Tensor]:
    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())  # whatever the module calls it
        found: Tensor = _RootMeanSquareNorm.apply(x, weight, epsilon)
        return found

    return forward


def _as_norm(module: nn.Module) -> tuple[Callable[[], Tensor], float] | None:
    """Return the factor of a root mean square norm, and its epsilon; None for what is none."""
    held: Sequence[Tensor] = [*module.parameters(), *module.buffers()]
    epsilon = next((value for name in _EPSILON if isinstance(value := getattr(module, name, None), float)), None)
    if epsilon is None or len(held) != 1 or [*module.children()] or "forward" in vars(module):
        return None
    if len(signature(module.forward).parameters) != 1:  # a gate beside it (Mamba's norms), which may be left out here
        return None
    (weight,) = held
    limit = _ROUNDING.get(weight.dtype)
    if limit is None or weight.dim() != 1 or weight.device.type != "cpu":
        return None
    generator = torch.Generator().manual_seed(0)
    # Of the size of epsilon too, which has to stand where the module has it.
    sizes = torch.tensor([[1.0], [epsilon**0.5]], dtype=weight.dtype)
    x = sizes * torch.randn(2, len(weight), generator=generator, dtype=weight.dtype)
    factors: tuple[Callable[[], Tensor], ...] = (lambda: weight.detach(), lambda: weight.detach() + 1)
    with torch.no_grad():
        try:
            expected = module(x)
        except Exception:  # whatever a module raises that is no norm of two rows
            return None
        if not isinstance(expected, Tensor) or expected.shape != x.shape or expected.dtype != x.dtype:
            return None
        for factor in factors:
            found = _RootMeanSquareNorm.apply(x, factor(), epsilon)
            if bool(((found - expected).abs().amax(-1) <= limit * expected.abs().amax(-1)).all()):
                return factor, epsilon
    return None
