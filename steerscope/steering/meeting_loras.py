"""The LoRAs of a block that write where an edit acts: what a joint constraint keeps the edit apart from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.site_kinds import Maps, kind_read_by, kinds_written_by_branches
from steerscope.sites import Site
from steerscope.steering.families.low_rank import LinearAdapter
from steerscope.steering.model import SteeringModel


@dataclass(frozen=True)
class MeetingLora:
    """A LoRA-wrapped map that writes where an edit acts.

    Attributes:
        module: The map, with PEFT's ``lora_A`` and ``lora_B``.
        reads: The site that it reads.
    """

    module: nn.Module
    reads: Site

    @property
    def parts(self) -> list[tuple[Tensor, Tensor, float]]:
        """Active ``(B, A, scaling)``: B ``(d_model r)``, A ``(r width)``."""
        module: Any = self.module
        return [
            (module.lora_B[name].weight, module.lora_A[name].weight, float(module.scaling[name]))
            for name in module.active_adapters
            if name in module.lora_B
        ]


def loras_meeting(steering: SteeringModel, site: Site, constraint: str) -> tuple[MeetingLora, ...]:
    """Return the LoRAs that write where the edit at a site acts; without a constraint there may be none.

    Args:
        steering: The steering model, on a LoRA of PEFT.
        site: One of its sites.
        constraint: ``none``, ``input`` or ``output``.

    Returns:
        One per map of the block that writes there and has a LoRA.

    Raises:
        InputError: There is none, or the two do not meet in one stream.
    """
    edit, block = steering.edit_at(site), steering.site_map.blocks[site.layer]
    if not isinstance(edit, LinearAdapter):
        raise InputError(
            f"joint constraints are defined for families 'linear' and 'nonlinear', with D and U; got {edit.name!r}. "
            "Use one of these."
        )
    branches = site.kind.facts.written_by
    if not branches:
        raise InputError(
            f"no LoRA of a block writes to the tensor of '{site}'; joint constraints are defined at "
            f"{', '.join(kinds_written_by_branches())}."
        )
    if constraint != "none" and block.description.changes_the_stream:
        raise InputError(
            f"block {block.index} changes the stream after the LoRA's map added to it (layout "
            f"'{block.description.layout}'), so no constraint on B keeps the two apart. Use constraint 'none'."
        )
    found = []
    for branch in branches:
        norm = block.post_norm(branch)
        module: Any = block.maps(branch, Maps.WRITE)[0]
        if not getattr(module, "lora_B", None):
            continue
        if norm is not None and constraint == "none":
            continue  # nothing to hold, and no columns in the stream to measure
        if norm is not None:
            raise InputError(
                f"a norm stands between the LoRA's map and the stream (layout '{block.description.layout}'), so what "
                "the LoRA adds is not in the columns of B, and no constraint on B keeps the two apart."
            )
        if getattr(module, "lora_magnitude_vector", None):
            raise InputError("DoRA rescales the whole weight; joint constraints need a plain LoRA.")
        if constraint != "none" and any(part.bias is not None for part in module.lora_B.values()):
            raise InputError(
                "this LoRA writes a bias besides B (lora_bias=True), which no constraint on B holds off. Leave "
                "lora_bias out of its configuration, or use constraint 'none'."
            )
        found.append(MeetingLora(module, Site(site.layer, kind_read_by(branch, Maps.WRITE))))
    if not found and constraint != "none":
        raise InputError(
            f"no LoRA writes where '{site}' acts; add the attention's output projection or the MLP's down projection "
            "of its layer to the LoRA's target_modules."
        )
    return tuple(found)
