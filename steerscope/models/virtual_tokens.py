"""Virtual tokens: what PEFT's prompt-learning methods put before every row, as embeddings or as keys and values.

They stand in no tokenizer's ids and no caller's mask, and PEFT puts them before padding on the left, so that a text
would depend on the batch it is in.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from steerscope.errors import InputError
from steerscope.models.wrappers import is_peft, language_model


def num_virtual_tokens(model: nn.Module) -> int:
    """Return how many virtual tokens PEFT puts before every row of a model, inside this package's wrappers too."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        if is_peft(inner):
            config: Any = inner.active_peft_config
            return int(config.num_virtual_tokens or 0) if config.is_prompt_learning else 0
        inner = inner._modules.get("base_model")
    return 0


def require_no_virtual_tokens(model: nn.Module, why: str) -> None:
    """Refuse a model whose rows begin with virtual tokens.

    Args:
        model: A language model or a wrapper of one.
        why: What they would spoil, a clause.

    Raises:
        InputError: They do.
    """
    count = num_virtual_tokens(model)
    if count:
        raise InputError(
            f"PEFT puts {count} virtual tokens before every row of this model (prompt learning), and {why}. Use an "
            "adapter that adds none, a LoRA for example."
        )


def require_no_tokens_around(model: nn.Module) -> None:
    """Refuse to generate where PEFT's wrapper around a steered model would add virtual tokens.

    It leaves a method of its own on what it wraps, which the base model's ``generate`` does not call from there.

    Raises:
        InputError: It would.
    """
    around = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
    if isinstance(around, nn.Module):
        require_no_virtual_tokens(around, "generate() of the steered model inside would leave them out")


def require_no_tokens_from_callers(model: nn.Module, why: str) -> None:
    """Refuse a pass that PEFT's wrapper around a steered model makes with virtual tokens before the rows.

    The wrapper leaves no trace on what it wraps, and what it passes (embeddings, or keys and values) does not differ
    from what a caller may pass, so the calling functions are asked.

    Args:
        model: The language model whose pass it is.
        why: What they would spoil, a clause.

    Raises:
        InputError: It does.
    """
    if "peft" not in sys.modules:
        return
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        frame = caller
        around = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if isinstance(around, nn.Module) and is_peft(around) and language_model(around) is model:
            require_no_virtual_tokens(around, why)
