"""Two hashes of a model's weights: exact, for results; rounded and without PEFT, for what an adapter fits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steerscope.models.offloaded import require_runs, weights_in_memory
from steerscope.models.packed import is_packed, stored
from steerscope.models.wrappers import language_model, original_layer


@torch.no_grad()
def digest_of_parameters(model: nn.Module) -> str:
    """Return a SHA-256 over all parameters' names and bytes: equal for models that compute the same to the bit.

    Cost: reads every weight once, about a second per gigabyte.
    """
    return _digest(_whole(model))


@torch.no_grad()
def fingerprint_of(model: nn.Module, without: frozenset[str] = frozenset()) -> str:
    """Return the fingerprint of a model's own weights.

    Changes of single weights below bfloat16's resolution (one part in 256) are not seen; a fine-tuned copy, in which
    millions of weights move a little, is.

    Args:
        model: The model; what PEFT added to it is left out.
        without: Names of weights to leave out: those that an adapter brings along.

    Returns:
        The SHA-256 in hexadecimal.

    Raises:
        InputError: Weights have no values.

    Cost: reads every weight once, about a second per gigabyte.
    """
    require_runs(model)
    return _digest(
        (f"{name}{tuple(weight.shape)}", weight.to(torch.bfloat16) if weight.is_floating_point() else weight)
        for name, weight in own_weights(model)
        if name not in without
    )


def own_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the language model itself by the names they have without PEFT, in its own order.

    Of quantised layers, all that they keep: codes, scales and whatever else decides their outputs.
    """
    seen: set[int] = set()

    def below(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
        own = original_layer(module)
        if own is None or id(own) in seen:
            return
        seen.add(id(own))
        if _keeps_packed(own):
            with weights_in_memory(own):
                yield from ((prefix + name, value) for name, value in stored(own))
            return
        names = [name for name, value in own._parameters.items() if value is not None and id(value) not in seen]
        seen.update(id(own._parameters[name]) for name in names)
        for name in names:
            with _values_of(own, name) as value:
                yield prefix + name, value
        for name, child in own.named_children():
            yield from below(child, f"{prefix}{name}.")

    yield from below(language_model(model), "")


def _keeps_packed(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and is_packed(module)


def _whole(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter, and in their places what quantised layers keep."""
    modules = dict(model.named_modules())
    packed = {name for name, module in modules.items() if _keeps_packed(module)}
    for path in packed:
        with weights_in_memory(modules[path]):
            yield from ((f"{path}.{name}", value) for name, value in stored(modules[path]))
    for name, _ in model.named_parameters():
        path, _, last = name.rpartition(".")
        if path not in packed:
            with _values_of(modules[path], last) as value:
                yield name, value


@contextmanager
def _values_of(module: nn.Module, name: str) -> Iterator[Tensor]:
    """Give a module's own parameter with its values, wherever it is kept."""
    value = module._parameters[name]
    assert value is not None
    if not value.is_meta:
        yield value
        return
    with weights_in_memory(module):
        value = module._parameters[name]
        assert value is not None
        yield value


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for label, tensor in tensors:
        digest.update(label.encode())
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(whole.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
