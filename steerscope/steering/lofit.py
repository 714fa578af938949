"""LoFiT's two stages: sparse scales at all heads choose the heads, offsets at these are what is kept.

Stage 1 trains ``lofit_scale`` at ``attn_heads`` with an L1 penalty, stage 2 ``lofit_offset`` at :func:`top_heads` on
the base model as it was; the scales are thrown away. Source: Yin et al. 2024.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from steerscope.errors import InputError
from steerscope.sites import Site
from steerscope.steering.families import LofitScale
from steerscope.steering.model import SteeringModel


def _scales(steering: SteeringModel) -> dict[Site, LofitScale]:
    found: dict[Site, LofitScale] = {}
    for site in steering.sites:
        edit = steering.edit_at(site)
        if not isinstance(edit, LofitScale):
            raise InputError(
                f"stage 1 of LoFiT trains family 'lofit_scale', got {edit.name!r}; use "
                "SteeringConfig('attn_heads', 'lofit_scale')."
            )
        found[site] = edit
    return found


def l1_penalty(steering: SteeringModel) -> Tensor:
    """Return the sum of the scales' absolute values, to be added to the loss times a strength.

    Raises:
        InputError: The adapter is not of family ``lofit_scale``.
    """
    return torch.stack([edit.A.abs().sum() for edit in _scales(steering).values()]).sum()


@torch.no_grad()
def head_sizes(steering: SteeringModel) -> dict[str, float]:
    """Return, per head, the Euclidean length of its scales, the largest first.

    Returns:
        Lengths by head, as ``layer.attn_heads.head``.

    Raises:
        InputError: The adapter is not of family ``lofit_scale``.
    """
    sizes: dict[str, float] = {}
    for site, edit in _scales(steering).items():
        if site.head is not None:
            sizes[str(site)] = float(edit.A.norm())
            continue
        for head, part in enumerate(edit.A.unflatten(0, (steering.site_map.n_heads, -1))):
            sizes[str(Site(site.layer, site.kind, head))] = float(part.norm())
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def top_heads(steering: SteeringModel, count: int) -> tuple[str, ...]:
    """Return the heads with the largest scales, as sites for stage 2.

    Args:
        steering: A trained stage 1, of family ``lofit_scale``.
        count: How many heads.

    Returns:
        Sites such as ``3.attn_heads.5``, the largest scale first.

    Raises:
        InputError: There are fewer heads, or the adapter is not of family ``lofit_scale``.
    """
    sizes = head_sizes(steering)
    if not 1 <= count <= len(sizes):
        raise InputError(f"asked for {count} heads of {len(sizes)}; ask for 1 to {len(sizes)}.")
    return tuple(list(sizes)[:count])


class SparseScales(TrainerCallback):
    """Adds the gradient of ``strength * l1_penalty`` before every optimizer step of transformers' Trainer.

    It comes after the Trainer's clipping of gradients, which so acts on the loss alone. The reported loss does not
    hold the penalty.
    """

    def __init__(self, steering: SteeringModel, strength: float) -> None:
        self.edits, self.strength = tuple(_scales(steering).values()), strength

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add it under the Trainer."""
        self.add_to_gradients()

    @torch.no_grad()
    def add_to_gradients(self) -> None:
        """Add it, before any optimizer's step."""
        for edit in self.edits:
            if edit.A.grad is not None:
                edit.A.grad.add_(edit.A.sign(), alpha=self.strength)
