"""The linear maps inside the parts of a traced block, and how those of an MLP make its hidden layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from steerscope.models.attributes import FUNCTIONS
from steerscope.models.blocks import is_transposed, linear_shape
from steerscope.models.packed import computes_linear_map, has_maps, is_packed
from steerscope.models.recognition.trace import Traced, is_result, is_same
from steerscope.models.wrappers import acting_layer


class Reader(Protocol):
    """What this file needs of the reader of a block."""

    module: nn.Module
    inside: list[Traced]
    direct: list[Traced]
    shape: torch.Size
    tolerance: float

    def path(self, one: Traced) -> str:
        """Return where a call's module is, from the block."""
        ...


@dataclass(frozen=True)
class MLP:
    """What was found of an MLP.

    Attributes:
        entry: The module whose first input is what the MLP reads.
        kind: In words.
        reads: Paths of the maps that read it, gate first; empty where the MLP is one map.
        write: Path of the map that writes, ``None`` where the MLP is one map.
        activation: Path of the activation function.
        gated: Whether the hidden layer is ``phi(gate) * up``.
        inner: Paths of linear maps inside an MLP that is one map.
    """

    entry: Traced
    kind: str
    reads: tuple[str, ...] = ()
    write: str | None = None
    activation: str | None = None
    gated: bool = False
    inner: tuple[str, ...] = ()


def linear_calls(reader: Reader, among: Iterable[Traced]) -> list[Traced]:
    """Return the calls of linear maps that run once, on every token.

    Args:
        reader: The block.
        among: Calls to choose from.

    Returns:
        Those whose output is their weight (and bias) times their input, or that PEFT put around such a map.
    """
    calls = [one for one in among if _is_linear(one, reader.shape)]
    calls = [one for one in calls if not any(one.is_inside(other) for other in calls)]
    return [one for one in calls if sum(other.module is one.module for other in reader.inside) == 1]


def _is_linear(one: Traced, shape: torch.Size) -> bool:
    layer = acting_layer(one.module)
    weight = getattr(layer, "weight", None)
    if one.given is None or one.gave is None or not one.alone:
        return False
    if is_packed(layer):
        return _reads_every_token(one, shape) and computes_linear_map(layer, one.given)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return False
    if (one.gave.shape[-1], one.given.shape[-1]) != linear_shape(layer):
        return False
    if not _reads_every_token(one, shape) or one.given.dtype != weight.dtype:
        return False
    if layer is not one.module:
        return True
    expected = one.given @ (weight if is_transposed(layer) else weight.T)
    bias = getattr(layer, "bias", None)
    expected = expected if bias is None else expected + bias
    return one.value is not None and _agree(expected, one.value, 1e-3 if weight.dtype.itemsize >= 4 else 0.1)


def _reads_every_token(one: Traced, shape: torch.Size) -> bool:
    """Whether a call works on one float vector per token of the pass."""
    if one.given is None or not one.given.is_floating_point():
        return False
    return [size for size in one.given.shape[:-1] if size != 1] in (list(shape), [shape.numel()])


def _agree(expected: Tensor, found: Tensor, tolerance: float) -> bool:
    if expected.numel() != found.numel():
        return False
    scale = found.float().pow(2).mean().sqrt().clamp_min(1e-30)
    return float((expected.reshape(found.shape) - found).float().abs().max() / scale) <= tolerance


def mlp_inside(reader: Reader, unit: Traced, written: Traced, attn: Traced) -> MLP:
    """Return the maps of an MLP.

    Args:
        reader: The block.
        unit: The MLP, or its last map where it has no module of its own.
        written: The call whose output the MLP writes, before a norm on it.
        attn: The attention.

    Returns:
        The hidden layer's maps and activation where ``phi(gate) * up`` or ``phi(first)`` holds of them; otherwise the
        MLP as one map, with the linear maps inside it.
    """
    own = linear_calls(reader, [unit, *(one for one in reader.inside if one.is_inside(unit))])
    outside = linear_calls(reader, [one for one in reader.inside if one is not attn and not one.is_inside(attn)])
    # Some blocks keep the maps of their MLP side by side (OPT), or in a module each (BERT's intermediate and output).
    for maps, entry in ((own, unit), (outside, next(iter(outside), unit))):
        if (found := _with_hidden_layer(reader, maps, entry, written)) is not None:
            return found
    return MLP(unit, "MLP as one map", inner=tuple(reader.path(one) for one in own))


def _with_hidden_layer(reader: Reader, maps: list[Traced], entry: Traced, written: Traced) -> MLP | None:
    """Return an MLP of which ``phi(gate) * up`` or ``phi(first)`` holds, ``None`` where neither does."""
    write = next((one for one in maps if is_result(one, written)), None)
    reads = [one for one in maps if one is not write and is_same(one.given, entry.given)]
    if write is None or write.given is None or not reads or {*reads, write} != set(maps):
        return None
    tolerance = 1e-3 if reader.tolerance <= 1e-3 else 0.1
    for path, phi in activations(reader, entry):
        for order, hidden in _hidden_layers(reads, phi):
            if _agree(hidden, write.given, tolerance):
                first = order[0].value
                gated = len(order) == 2 or (first is not None and hidden.shape[-1] != first.shape[-1])
                kind = "gated MLP" if gated else "plain MLP"
                return MLP(entry, kind, tuple(map(reader.path, order)), reader.path(write), path, gated)
    return None


def _hidden_layers(reads: list[Traced], phi: Callable[[Tensor], Tensor]) -> Iterator[tuple[tuple[Traced, ...], Tensor]]:
    """Yield what the hidden layer would be, with the maps in the order that makes it so."""
    made = [one.value for one in reads if one.value is not None]
    if len(made) == 1:
        (first,) = made
        yield (reads[0],), phi(first)
        if first.shape[-1] % 2 == 0:
            gate, up = first.chunk(2, dim=-1)
            yield (reads[0],), phi(gate) * up
    if len(made) == 2 and made[0].shape == made[1].shape:
        for gate_at, up_at in ((0, 1), (1, 0)):
            yield (reads[gate_at], reads[up_at]), phi(made[gate_at]) * made[up_at]


def activations(reader: Reader, entry: Traced) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield what could be an activation function, by its path in the block: callables without maps.

    Args:
        reader: The block.
        entry: The MLP or its first map; its owner is searched, too.

    Yields:
        Path and function; those that raise on a small tensor are left out. Last, functions of torch that blocks call
        by name.
    """
    prefix = reader.path(entry)
    owners = [(f"{prefix}.{path}" if path else prefix, part) for path, part in entry.module.named_modules()]
    around = prefix.rpartition(".")[0]
    owners += [(around, reader.module.get_submodule(around)), ("", reader.module)]
    for path, owner in owners:
        for name, value in (*vars(owner).items(), *owner.named_children()):
            if name.startswith("_") or name == "forward" or not callable(value) or isinstance(value, type):
                continue
            if isinstance(value, nn.Module) and has_maps(value):
                continue
            if entry.given is not None and _is_elementwise(value, entry.given):
                yield (f"{path}.{name}" if path else name), value
    yield from FUNCTIONS.items()


def _is_elementwise(function: Callable[[Tensor], object], like: Tensor) -> bool:
    """Whether a callable takes tensors of any shape and gives back tensors of the same."""
    for shape in ((3,), (2, 5)):
        probe = torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(like)
        try:
            found = function(probe)
        except Exception:  # whatever a callable that is no activation raises
            return False
        if not isinstance(found, Tensor) or found.shape != shape:
            return False
    return True
