"""How a module was called: its first tensor, and the same call again with another one; hooks of a context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def first_tensor(value: object) -> Tensor | None:
    """Return a tensor, or the first one in a tuple or in the output of a model; ``None`` where there is none."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((one for one in value if isinstance(one, Tensor)), None)
    return None


def with_first_tensor(output: Any, value: Tensor) -> Any:
    """Return a module's output with another first tensor.

    Args:
        output: A tensor, or a tuple or list that begins with one.
        value: What takes its place.

    Returns:
        The tensor alone, or a sequence of the same kind.
    """
    return type(output)((value, *output[1:])) if isinstance(output, tuple | list) else value


# What blocks give back beside the stream, without tensors; None for one that gives the stream alone.
_BESIDE: WeakKeyDictionary[nn.Module, tuple[Any, ...] | list[Any] | None] = WeakKeyDictionary()


def remember_output(module: nn.Module, args: object, output: object) -> None:
    """Note in which form a block gives back the stream: a forward hook.

    Args:
        module: The block.
        args: What it was called with.
        output: What it gave.
    """
    beside = None
    if isinstance(output, tuple | list):
        beside = type(output)(None if isinstance(one, Tensor) else one for one in output[1:])
    _BESIDE[module] = beside


def as_given_back(module: nn.Module, stream: Tensor) -> Any:
    """Return the stream as a block gives it back: alone, or first in a tuple (Falcon) or a list (GPT-1).

    Args:
        module: The block; one that no check ran is taken to give the stream alone.
        stream: ``batch token d_model``.

    Returns:
        The stream, or a tuple that begins with it.
    """
    beside = _BESIDE.get(module)
    return stream if beside is None else type(beside)((stream, *beside))


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a module, whose first tensor is the activation that it works on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def _place(self) -> int | str | None:
        """Where the first tensor is: a number for an argument by place, else a name."""
        if self.args:
            return 0 if isinstance(self.args[0], Tensor) else None
        if isinstance(self.kwargs.get("hidden_states"), Tensor):
            return "hidden_states"
        return next((name for name, value in self.kwargs.items() if isinstance(value, Tensor)), None)

    @property
    def first(self) -> Tensor | None:
        """The tensor that the module works on, or ``None``."""
        place = self._place
        if place is None:
            return None
        return self.args[place] if isinstance(place, int) else self.kwargs[place]

    def with_first(self, value: Tensor) -> Call:
        """Return the call with another first tensor."""
        place = self._place
        if isinstance(place, str):
            return Call(self.args, {**self.kwargs, place: value})
        return Call((value, *self.args[1:]), self.kwargs)

    def again(self, module: nn.Module, value: Tensor) -> Any:
        """Call a module as it was called, on another tensor.

        Args:
            module: The module.
            value: What it gets in place of the first tensor.

        Returns:
            Its output.
        """
        call = self.with_first(value)
        return module(*call.args, **call.kwargs)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks off modules at the end of the context, however it is left."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


class ReachedError(Exception):
    """Ends a pass at the module that was waited for."""


@contextmanager
def calls_of(modules: Iterable[nn.Module], *, stop: bool = False) -> Iterator[dict[nn.Module, Call]]:
    """Record how modules are called by passes inside the context.

    Args:
        modules: Which.
        stop: End the context, without an error, at the first call of one of them; what stands above does not run.

    Yields:
        Per module its last call, in the order of the first ones; filled as the model runs.
    """
    found: dict[nn.Module, Call] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[module] = Call(args, dict(kwargs))
        if stop:
            raise ReachedError

    with (
        suppress(ReachedError),
        hooked(module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules),
    ):
        yield found


def stream_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the stream among the arguments of a block.

    Args:
        args: Those by place.
        kwargs: Those by name.

    Returns:
        The first tensor, ``batch token d_model``.
    """
    found = Call(args, kwargs).first
    assert found is not None
    return found
