"""What the folder of an adapter holds, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from steerscope.steering.config import SteeringConfig
from steerscope.steering.identity import BaseIdentity


@dataclass(frozen=True)
class AdapterFile:
    """What a folder holds.

    Attributes:
        config: The adapter's configuration.
        base: The model it was trained for.
        sites: Per site, its equation in that model's layout.
        lora: Name of the LoRA underneath, if there is one.
        tensors: The edits' tensors by ``site.name``.
        strength: What is added is multiplied by it.
    """

    config: SteeringConfig
    base: BaseIdentity
    sites: Mapping[str, str]
    lora: str | None
    tensors: Mapping[str, Tensor]
    strength: float = 1.0
