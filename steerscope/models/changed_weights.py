"""Run a model with other weights, or with an update added to its own, and with its own tensors afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.models.load import LoadedModel


@contextmanager
def with_weights(
    model: LoadedModel | nn.Module, weights: Mapping[str, Tensor], *, added: bool = False
) -> Iterator[None]:
    """Give parameters other values inside the context; the very tensors they had come back after it.

    Args:
        model: The model. Its parameters keep their identity, so that hooks and optimizers go on seeing them.
        weights: New values per parameter name, each of the parameter's shape.
        added: Whether they are changes, to be added to the parameters' values.

    Raises:
        InputError: They name a parameter that the model does not have, or are of another shape.

    Cost: one more copy of the named weights.
    """
    named = dict((model.model if isinstance(model, LoadedModel) else model).named_parameters())
    if unknown := sorted(set(weights) - set(named)):
        raise InputError(f"the update names {unknown[:3]}, which this model does not have. Use named_parameters().")
    for name, value in weights.items():
        if value.shape != named[name].shape:
            raise InputError(
                f"the update of {name!r} has shape {tuple(value.shape)}; the weight has {tuple(named[name].shape)}. "
                "Give one number per weight."
            )
    before = {name: named[name].data for name in weights}
    try:
        with torch.no_grad():
            for name, value in weights.items():
                own = before[name]
                named[name].data = own + value.to(own) if added else value.to(own, copy=True)
        yield
    finally:
        for name, own in before.items():
            named[name].data = own


def with_update(model: LoadedModel | nn.Module, update: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Add changes to the weights inside a context; see :func:`with_weights`.

    Args:
        model: The model.
        update: Change per parameter name, each of the parameter's shape.

    Returns:
        The context.
    """
    return with_weights(model, update, added=True)
