"""What is inside a wrapper: the language model, its decoder, and the layers that PEFT put others around.

PEFT's wrapper, and those of this package, hold the model they wrap as a module ``base_model``, in any depth. Whatever
needs the model itself asks here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models.offloaded import device_of

# --- models ---


def require_model(model: object) -> None:
    """Refuse what is no model, the name of one for example.

    Raises:
        InputError: It is none.
    """
    if not isinstance(model, nn.Module):
        what = repr(model) if isinstance(model, str | None) else type(model).__name__
        raise InputError(
            f"expected a causal language model of transformers, got {what}. Load one with AutoModelForCausalLM, or "
            "with steerscope.load_model (what it returns holds it as model)."
        )


def language_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside wrappers, PEFT's and those of this project, or the model itself.

    Raises:
        InputError: It is no model.
    """
    require_model(model)
    inner: Any = model
    # Wrappers hold it as a module; a transformers model has a property of that name.
    while "base_model" in inner._modules:
        unwrap = getattr(type(inner), "get_base_model", None)
        inner = unwrap(inner) if callable(unwrap) else inner.base_model
    assert isinstance(inner, nn.Module)
    return inner


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the stack of blocks inside a causal language model, through wrappers if there are any.

    Raises:
        UnsupportedModelError: The model has no decoder that transformers can name.
    """
    inner = language_model(model)
    get_decoder = getattr(inner, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if not isinstance(decoder, nn.Module) or isinstance(decoder, nn.Linear):  # a few families call their head "decoder"
        decoder = getattr(inner, "base_model", None)
    # The language model inside one of images may bring a head of its own.
    while isinstance(getattr(decoder, "lm_head", None), nn.Module) and isinstance(
        below := getattr(decoder, "model", None), nn.Module
    ):
        decoder = below
    if not isinstance(decoder, nn.Module):
        raise UnsupportedModelError(
            f"expected a causal language model of transformers, got {type(model).__name__}. "
            "Load it with AutoModelForCausalLM, or with steerscope.load_model."
        )
    return decoder


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch off dropout, and give back the mode of every module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def vocab_size(model: nn.Module) -> int:
    """Return the number of token embeddings of a model."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    return int(embeddings.weight.shape[0])


def run_on_random_tokens(model: nn.Module) -> Tensor:
    """Run a causal language model on :func:`random_tokens`, for what hooks see of it; return them."""
    ids = random_tokens(model, torch.Generator().manual_seed(0))
    model(input_ids=ids, use_cache=False)
    return ids


def random_tokens(model: nn.Module, generator: torch.Generator) -> Tensor:
    """Return two sequences of random tokens, on the model's device.

    Args:
        model: A model with token embeddings.
        generator: Draws them.

    Returns:
        Token ids, ``2 x 6``.
    """
    ids = torch.randint(0, vocab_size(model), (2, 6), generator=generator)
    return ids.to(device_of(model))


def is_peft(model: nn.Module) -> bool:
    """Whether PEFT wraps the model."""
    return hasattr(model, "peft_config") and callable(getattr(model, "get_base_model", None))


# --- layers ---


def tuner_layers(model: nn.Module) -> set[nn.Module]:
    """Return the layers that PEFT put into a model, in whatever way."""
    if "peft" not in sys.modules:  # slow to load, and without it there are none
        return set()
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {module for module in model.modules() if isinstance(module, BaseTunerLayer)}


def acting_layer(module: nn.Module) -> nn.Module:
    """Return the layer that acts inside PEFT's wrapper of it: its trained copy where it has one, else the original.

    A module that PEFT did not wrap is returned as it is.
    """
    copies = module._modules.get("modules_to_save")
    if isinstance(copies, nn.ModuleDict):
        wrapped: Any = module
        return wrapped.original_module if wrapped.disable_adapters else copies[wrapped.active_adapters[0]]
    unwrap = getattr(module, "get_base_layer", None)
    found = unwrap() if callable(unwrap) else module
    assert isinstance(found, nn.Module)
    return found


def original_layer(module: nn.Module) -> nn.Module | None:
    """Return the layer that PEFT put another one around, or the module itself; ``None`` where PEFT added all of it."""
    if "peft" not in sys.modules:
        return module
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: Any = module
    while True:
        if isinstance(found, BaseTunerLayer):
            found = getattr(found, "base_layer", None)
        elif isinstance(found, AuxiliaryTrainingWrapper):
            found = found.original_module
        else:
            return found
