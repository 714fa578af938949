"""A named adapter on a model: its edits, where they act, and how strongly.

Several stand on one model at a time and one of them acts. The hooks of all stay: which edits a pass makes is settled
when it begins, so another adapter chosen meanwhile, in another thread perhaps, changes nothing in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.models.offloaded import device_of
from steerscope.models.site_map import SiteMap
from steerscope.site_kinds import Place
from steerscope.sites import Site
from steerscope.steering.beneath import LORA_FOLDER
from steerscope.steering.build import build_edits
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import SteeringEdit
from steerscope.steering.positions import Positions

DEFAULT = "default"
_NAME = re.compile(r"\w[\w-]*")


class Adapter:
    """The edits of one configuration on one model.

    Attributes:
        name: What it is called on its model.
        config: Its configuration.
        sites: Where it edits, in the order of computation.
        edits: The edits by the site's name as a module (:func:`module_name`).
        positions: Which tokens are edited.
        strength: What is added is multiplied by it.
        inside: The blocks in which edits act inside, not only on what enters and leaves.
        hooks: What sets its hooks; closing it takes them away.
    """

    def __init__(self, name: str, config: SteeringConfig, site_map: SiteMap) -> None:
        self.name, self.config = name, config
        found = build_edits(config, site_map)
        self.sites = tuple(found)
        blocks = [block.module for block in site_map.blocks]
        self.edits = nn.ModuleDict(
            {module_name(site): edit.to(device_of(blocks[site.layer])) for site, edit in found.items()}
        )
        self.positions = Positions.parse(config.positions)
        self.inside = {blocks[site.layer] for site in self.sites if site.kind.facts.place is Place.INSIDE}
        self.strength = 1.0
        self.hooks = ExitStack()

    def edit_at(self, site: Site) -> SteeringEdit:
        """Return the edit at one of the adapter's sites."""
        edit = self.edits[module_name(site)]
        assert isinstance(edit, SteeringEdit)
        return edit

    def tensors(self) -> dict[str, Tensor]:
        """Return the edits' tensors by ``site.name``, as they are saved."""
        return {
            f"{site}.{name}": value for site in self.sites for name, value in self.edit_at(site).state_dict().items()
        }

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the values of :meth:`tensors`, whose names and shapes were checked before."""
        for site in self.sites:
            prefix = f"{site}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.edit_at(site).load_state_dict(own)
        self.mark_ready()

    def mark_ready(self) -> None:
        """Tell edits whose scale came with their tensors that it is known."""
        for site in self.sites:
            edit = self.edit_at(site)
            edit.is_ready = edit.scale is None or bool(torch.isfinite(edit.scale))


def module_name(site: Site) -> str:
    """Return the site as a module's name, which cannot hold a dot."""
    return str(site).replace(".", "-")


def checked_name(name: Any) -> str:
    """Return a name that an adapter can have.

    Raises:
        InputError: It is no name, or that of the folder of a LoRA underneath.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == LORA_FOLDER:
        raise InputError(
            f"an adapter cannot be called {name!r}; expected letters, digits, _ and - (it becomes the name of a "
            f"folder), and not {LORA_FOLDER!r}, where the LoRA underneath is kept: 'polite', for example."
        )
    return name


def checked_strength(value: Any) -> float:
    """Return a strength.

    Raises:
        InputError: It is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"a strength is a finite number (1 as trained, 0 no edit, -1 the reverse), got {value!r}.")
    return float(value)
