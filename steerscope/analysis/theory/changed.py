"""Run a model with an update added to its weights, and put every bit back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
    named = dict(loaded.model.named_parameters())
    if unknown := sorted(set(update) - set(named)):
        raise InputError(f"the update names {unknown[:3]}, which this model does not have. Use named_parameters().")
    before = {name: named[name].detach().clone() for name in update}
    try:
        with torch.no_grad():
            for name, change in update.items():
                named[name].add_(change.to(named[name]))
        yield loaded
    finally:
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)
