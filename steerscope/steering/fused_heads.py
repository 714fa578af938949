"""Trainers that compute losses from hidden states: the head they put on a model goes to the language model inside.

TRL's SFTTrainer replaces ``model.forward`` by a function that calls the decoder and scores tokens in tiles, without
making all logits. On a wrapper it would look for the decoder where the language model is, and it would keep labels, by
which edits know where prompts end, to itself. PEFT's wrappers get the function inside; so do edits.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

from torch import nn

OPTION = "fused_lm_head"  # the argument by which such a function is asked for what it adds


def is_fused(forward: object) -> bool:
    """Whether a function that is to be a model's ``forward`` is one of these."""
    code = getattr(getattr(forward, "__func__", forward), "__code__", None)
    return OPTION in getattr(code, "co_varnames", ())


def inside_of(model: nn.Module, forward: MethodType) -> MethodType:
    """Return a ``forward`` of a language model that answers calls for the fused head; others it answers as before.

    Args:
        model: The language model.
        forward: What a trainer made for the wrapper.

    Returns:
        The method, to be put on the model.
    """
    original = model.forward

    @functools.wraps(type(model).forward)  # generate() looks at the signature
    def inside(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get(OPTION):
            return forward.__func__(self, *args, **kwargs)
        kwargs.pop(OPTION, None)
        return original(*args, **kwargs)

    return MethodType(inside, model)
