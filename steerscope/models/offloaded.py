"""Models in several places: ``device_map`` puts layers on several devices, or leaves weights elsewhere until a pass.

Such a model runs by hooks of accelerate, which bring inputs to a layer's device and, where its weights are away (on the
CPU or the disk, with the meta device in their place), the weights, too. So whatever needs inputs and outputs works.
What writes into weights, or computes with many of them outside of a pass, refuses.

A backward pass keeps the weights of all layers it goes through on the device, whatever was offloaded: memory is saved
where no gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from steerscope.errors import InputError


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a model or a part of it takes its inputs: where its first layer runs.

    Raises:
        InputError: It is on the meta device, with nothing that brings its weights.
    """
    for one in module.modules():
        for hook in _hooks(one):
            if (found := getattr(hook, "execution_device", None)) is not None:
                return torch.device(found)
        own = next((value for value in (*one.parameters(recurse=False), *one.buffers(recurse=False))), None)
        if own is not None and not own.is_meta:
            return own.device
    raise InputError(
        f"the weights of this {type(module).__name__} have no values (they are on the meta device, and nothing brings "
        "them when it runs). Load the model, with from_pretrained or steerscope.load_model."
    )


def require_runs(model: nn.Module) -> None:
    """Refuse a model with weights that have no values, not even while it runs.

    Raises:
        InputError: It has such weights.
    """
    with_values = {id(value) for one in model.modules() if _brings_weights(one) for value in one.parameters()}
    for name, value in model.named_parameters():
        if value.is_meta and id(value) not in with_values:
            raise InputError(
                f"weight {name!r} has no values: it is on the meta device, and nothing brings it when the model runs. "
                "Load the model, with from_pretrained or steerscope.load_model."
            )


@contextmanager
def weights_in_memory(module: nn.Module) -> Iterator[None]:
    """Have the weights of a layer in memory inside the context, wherever they are kept."""
    with ExitStack() as stack:
        if any(value.is_meta for value in module.parameters()):
            from accelerate.utils import align_module_device  # what offloaded the weights is installed

            for one in module.modules():
                stack.enter_context(align_module_device(one))
        yield


def require_weights_in_memory(model: nn.Module, what: str) -> None:
    """Refuse a model some of whose weights are only there while it runs.

    Args:
        model: A language model or a wrapper of one.
        what: What needs them, a noun.

    Raises:
        InputError: They are.
    """
    away = [name for name, value in model.named_parameters() if value.is_meta]
    if away:
        raise InputError(
            f"{len(away)} weights of this model are offloaded ({away[0]!r}, for example: device_map puts what does not "
            f"fit on the CPU or the disk), and {what} needs them in memory. Load the model whole: without device_map, "
            "in a smaller data type, or on a device that holds it."
        )


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    """Return accelerate's hooks on a module."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _brings_weights(module: nn.Module) -> bool:
    return any(getattr(hook, "offload", False) for hook in _hooks(module))
