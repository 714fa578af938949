"""What differs between the versions of transformers that steerscope works with; it is asked, not its version."""

from __future__ import annotations

from typing import Any

from torch import nn


def checkpoint_activations(model: nn.Module, options: Any = None, **kwargs: Any) -> None:
    """Have a transformers model compute blocks again in backward; newer versions have another name for it.

    Args:
        model: A transformers model.
        options: Arguments of torch's checkpoint function, such as ``{"use_reentrant": False}``.
        **kwargs: What else transformers takes.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options, **kwargs)
