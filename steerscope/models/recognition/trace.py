"""What the modules inside a stack of blocks were given and gave back in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.models.calls import Call, first_tensor, hooked


@dataclass(eq=False)
class Traced:
    """One call of a module: what it was given and gave back.

    Attributes:
        path: Where the module is, from the root of the trace; empty for the root itself.
        module: The module.
        call: Its arguments.
        given: The first tensor of its arguments.
        gave: The first tensor of its output, ``None`` where there is none: which tensor, as it may be changed in place.
        value: What was in it when the module gave it.
        alone: Whether that tensor was the whole output.
        began: When the call began and ``ended``: numbers that order all calls.
        ended: See ``began``.
    """

    path: str
    module: nn.Module
    call: Call
    given: Tensor | None
    gave: Tensor | None = None
    value: Tensor | None = None
    alone: bool = False
    began: int = 0
    ended: int = 0

    def is_inside(self, other: Traced) -> bool:
        """Whether the call was made by another one."""
        return other.began < self.began and self.ended < other.ended


@dataclass
class Trace:
    """All calls of one pass, in the order in which they began."""

    calls: list[Traced] = field(default_factory=list)
    clock: int = 0

    def tick(self) -> int:
        """Return the next number of the clock."""
        self.clock += 1
        return self.clock

    def of(self, module: nn.Module) -> list[Traced]:
        """Return the calls of one module."""
        return [one for one in self.calls if one.module is module]


@contextmanager
def traced(root: nn.Module) -> Iterator[Trace]:
    """Record every call of the modules in ``root`` that passes inside the context make."""
    trace = Trace()
    open_calls: list[Traced] = []

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call(args, kwargs)
            one = Traced(path, module, call, call.first, began=trace.tick())
            trace.calls.append(one)
            open_calls.append(one)

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        one = open_calls.pop()
        while one.module is not module:  # its call was left by an exception
            one = open_calls.pop()
        one.gave, one.ended = first_tensor(output), trace.tick()
        one.value, one.alone = None if one.gave is None else one.gave.clone(), isinstance(output, Tensor)

    modules = list(root.named_modules())
    handles = [module.register_forward_pre_hook(before(path), with_kwargs=True) for path, module in modules]
    handles += [module.register_forward_hook(after) for _, module in modules]
    with hooked(handles):
        yield trace


def is_same(first: Tensor | None, second: Tensor | None) -> bool:
    """Say whether two tensors are one in memory, in whatever shape.

    Args:
        first: A tensor of a trace. All of them are kept, so no memory is used twice.
        second: Another one.

    Returns:
        Whether they share all their numbers (on the meta device: would share them).
    """
    return (
        first is not None
        and second is not None
        and _place(first) == _place(second)
        and first.numel() == second.numel()
        and first.dtype == second.dtype
    )


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor is in memory: on the meta device, in which memory without addresses it would be."""
    if tensor.is_meta:
        return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
    return tensor.data_ptr(), 0


def is_result(one: Traced, other: Traced) -> bool:
    """Say whether two calls gave the same tensor with the same numbers in it: nothing was added in place between.

    Args:
        one: A call.
        other: Another one.

    Returns:
        Whether they did.
    """
    if one.value is None or other.value is None or not is_same(one.gave, other.gave):
        return False
    return torch.equal(one.value.flatten(), other.value.flatten())


def numbers_of(module: nn.Module) -> dict[str, float]:
    """Return the Python numbers, neither 0 nor 1, that a module keeps as attributes, by name."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in found.items() if not isinstance(value, bool) and value not in (0, 1)}


@torch.no_grad()
def mixes_tokens(one: Traced, shape: torch.Size, tolerance: float) -> bool:
    """Whether a module's output at a token depends on what it gets at other tokens.

    Args:
        one: A call of it.
        shape: ``(batch, token)`` of the pass.
        tolerance: What rounding may change of other tokens, relative: experts multiply tokens together.

    Returns:
        Whether it does. A call without a tensor, or with a tensor of another shape, does not.
    """
    if one.given is None or one.value is None or one.value.dim() < 2 or not one.given.is_floating_point():
        return False
    if one.given.numel() % shape.numel():
        return False
    by_token = one.given.reshape(*shape, -1)
    moved = by_token.clone()
    moved[:, 0] += by_token.float().pow(2).mean().sqrt().to(by_token) * torch.linspace(
        0.5, -1.0, by_token.shape[-1], device=by_token.device
    ).to(by_token)
    after = first_tensor(one.call.again(one.module, moved.reshape(one.given.shape)))
    if after is None or after.numel() % shape.numel() or after.shape != one.value.shape:
        return False
    scale = one.value.float().pow(2).mean().sqrt().clamp_min(1e-30)
    changed = (after - one.value).float().abs().reshape(*shape, -1) / scale
    return bool((changed[:, 1:] > tolerance).any())
