"""What an edit may return: something that can be added to a site's tensor, in one way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.sites import Site

# What an edit computes: from the tensor the site reads (batch token channel) to what is added there.
Edit = Callable[[Tensor], Tensor]


def checked(site: Site, edit: Edit) -> Edit:
    """Return an edit that refuses to change what it reads and to return what cannot be added there.

    Args:
        site: Where, for messages.
        edit: As the caller gave it.

    Returns:
        The same function with the checks around it: called with what the site reads (``batch token channel``), it
        returns what the edit returns.

    Raises:
        InputError: It cannot be called; or, when the result is called.
    """
    if isinstance(edit, Tensor) or not callable(edit):
        raise InputError(
            f"the edit at '{site}' is {type(edit).__name__}; expected a function from what the site reads to what is "
            "added there. For a vector write lambda x: vector."
        )

    def checking(read: Tensor) -> Tensor:
        version = None if read.is_inference() else read._version
        added = edit(read)
        if version is not None and read._version != version:
            raise InputError(
                f"the edit at '{site}' changed the tensor it was given, which the model goes on with. Return what is "
                "to be added as a new tensor (x * 0.1, not x.mul_(0.1))."
            )
        _require_addend(added, read.shape, site)
        return added

    return checking


def _require_addend(added: object, shape: torch.Size, site: Site) -> None:
    if not isinstance(added, Tensor):
        what = type(added).__name__
    elif added.is_complex():
        what = f"a tensor of {added.dtype}"
    elif not _fits(added.shape, shape):
        what = f"shape {tuple(added.shape)}"
    else:
        return
    batch, token, channel = shape
    raise InputError(
        f"the edit at '{site}' returned {what}; expected a real tensor that can be added to (batch, token, channel) = "
        f"{(batch, token, channel)}, of {channel} channels: of that shape, with 1 for batch or token, or ({channel},)."
    )


def _fits(shape: torch.Size, value: torch.Size) -> bool:
    """Whether a shape can be repeated to another, over batch and token alone."""
    # Of two axes it could be meant as batch or as token, and torch would take it as token.
    if not shape or shape[-1] != value[-1] or len(shape) > 3:
        return False
    lead = shape[:-1]
    if len(lead) == 1:
        return lead[0] == 1 or (value[0] == 1 and lead[0] == value[1])
    return all(size in (1, full) for size, full in zip(lead, value[:-1], strict=True)) if lead else True
