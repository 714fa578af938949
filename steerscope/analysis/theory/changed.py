"""Run a model with other weights, or with an update added to its own, and put every bit back afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from steerscope.analysis.theory.common import Update
from steerscope.errors import InputError
from steerscope.models.load import LoadedModel


@contextmanager
def with_update(loaded: LoadedModel, update: Update) -> Iterator[LoadedModel]:
    """Add ``update`` to the weights inside the context.

    The old weights are kept and restored as they were: subtracting the update again would leave rounding.

    Args:
        loaded: The model, changed in place.
        update: Change per parameter name, each of the parameter's shape.

    Yields:
        The same model with the changed weights.

    Raises:
        InputError: The update names a parameter that the model does not have.
    """
    with _restored(loaded, update) as named:
        with torch.no_grad():
            for name, change in update.items():
                named[name].add_(change.to(named[name]))
        yield loaded


@contextmanager
def with_weights(loaded: LoadedModel, weights: Update) -> Iterator[LoadedModel]:
    """Give parameters other values inside the context, and their own back after it, bit for bit.

    Args:
        loaded: The model, changed in place.
        weights: New values per parameter name, each of the parameter's shape.

    Yields:
        The same model with these weights.

    Raises:
        InputError: They name a parameter that the model does not have.
    """
    with _restored(loaded, weights) as named:
        with torch.no_grad():
            for name, value in weights.items():
                named[name].copy_(value)
        yield loaded


@contextmanager
def _restored(loaded: LoadedModel, names: Iterable[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Yield the model's parameters by name, and put the named ones back as they were."""
    named = dict(loaded.model.named_parameters())
    if unknown := sorted(set(names) - set(named)):
        raise InputError(f"the update names {unknown[:3]}, which this model does not have. Use named_parameters().")
    before = {name: named[name].detach().clone() for name in names}
    try:
        yield named
    finally:
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)
