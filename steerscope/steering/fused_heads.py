"""Trainers that compute losses from hidden states: the head they put on a model goes to the language model inside.

TRL's SFTTrainer replaces ``model.forward`` by a function that calls the decoder and scores tokens in tiles, without
making all logits. On a wrapper it would look for the decoder where the language model is, and it would keep labels, by
which edits know where prompts end, to itself. PEFT's wrappers get the function inside; so do edits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

OPTION = "fused_lm_head"  # the argument by which such a function is asked for what it adds


def is_fused(forward: object) -> bool:
    """Whether a function that is to be a model's ``forward`` is one of these."""
    code = getattr(getattr(forward, "__func__", forward), "__code__", None)
    return OPTION in getattr(code, "co_varnames", ())


def put_inside(model: nn.Module, forward: MethodType) -> Callable[[], None]:
    """Let a language model answer calls that ask for the fused head; others it answers as before.

    Args:
        model: The language model.
        forward: What a trainer made for the wrapper.

    Returns:
        A function that takes it off again.
    """
    before = model.__dict__.get("forward")
    original = model.forward

    @functools.wraps(type(model).forward)  # generate() looks at the signature
    def inside(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get(OPTION):
            return forward.__func__(self, *args, **kwargs)
        kwargs.pop(OPTION, None)
        return original(*args, **kwargs)

    model.forward = MethodType(inside, model)

    def take_off() -> None:
        if before is None:
            model.__dict__.pop("forward", None)
        else:
            model.forward = before

    return take_off
