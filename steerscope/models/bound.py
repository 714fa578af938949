"""Whether the parts of blocks that hooks stand on are still the model's: others may put layers around them later."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from steerscope.errors import InputError
from steerscope.models.blocks import Block


class BoundParts:
    """The parts of blocks and where they hang; cheap enough to look at in every pass."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        """Note the parts.

        Args:
            blocks: Of a site map, just found.
        """
        self._places: list[tuple[int, nn.Module, str, nn.Module]] = []
        for block in blocks:
            values = (part for part in vars(block).values() for part in (part if isinstance(part, tuple) else (part,)))
            parts = {part for part in values if isinstance(part, nn.Module)} - {block.module}
            for parent in block.module.modules():
                hanging = [(name, child) for name, child in parent.named_children() if child in parts]
                self._places += [(block.index, parent, name, child) for name, child in hanging]

    def require(self) -> None:
        """Refuse a pass through parts that were replaced.

        Raises:
            InputError: One was.
        """
        for layer, parent, name, child in self._places:
            if parent._modules.get(name) is not child:
                raise InputError(
                    f"{name!r} of block {layer} was replaced after the model was steered (PEFT does so where a LoRA is "
                    "put on or taken off later), so edits would miss what stands there now. unload() the edits, and "
                    "steer what PEFT returned."
                )
