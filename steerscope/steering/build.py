"""From a configuration to its edits as they start, the same for a steered model and for runs trained together."""

from __future__ import annotations

import torch

from steerscope.models.site_map import SiteMap
from steerscope.sites import Site
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import FAMILIES, SteeringEdit


def build_edits(config: SteeringConfig, site_map: SiteMap) -> dict[Site, SteeringEdit]:
    """Return the edits of a configuration as they start, by site in the order of computation; on the CPU.

    Args:
        config: Which edits, and the seed of what is drawn.
        site_map: The model's sites.

    Returns:
        One untrained edit per site.

    Raises:
        InputError: The model lacks a site.
    """
    generator = torch.Generator().manual_seed(config.seed)
    family = FAMILIES[config.family]
    return {site: family(config.options(site_map.width(site)), generator) for site in config.resolve(site_map)}
