"""How large what a site reads is: one number per site."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.finite import require_finite
from steerscope.models.hooks import Tap, tapping
from steerscope.models.site_map import SiteMap
from steerscope.models.wrappers import in_evaluation_mode, language_model
from steerscope.sites import Site


@torch.no_grad()
def measure_scales(
    model: nn.Module, site_map: SiteMap, sites: Sequence[Site], batches: Iterable[Mapping[str, Tensor]]
) -> dict[Site, float]:
    """Return the root mean square, over tokens and channels, of what each site reads.

    The root mean square of :func:`steerscope.analysis.capture.read_stats`' scales, on batches of any kind.

    Args:
        model: The model, without edits.
        site_map: Its sites.
        sites: Which of them.
        batches: What the model is called with; entries it does not take, and labels, are left out. Padding
            (``attention_mask``) is not counted.

    Returns:
        A positive number per site, in the units of what it reads.

    Raises:
        InputError: No batch, or a site that reads only zeros, NaN or infinity.

    Cost: one forward pass per batch.
    """
    sums: dict[Site, float] = dict.fromkeys(sites, 0.0)
    counts: dict[Site, int] = dict.fromkeys(sites, 0)
    mask: Tensor | None = None

    def counting(site: Site) -> Tap:
        def tap(value: Tensor, read: Tensor) -> None:
            kept = read if mask is None else read[mask.to(read.device) != 0]
            sums[site] += float(kept.double().square().sum())
            counts[site] += kept.numel()

        return tap

    takes = set(inspect.signature(language_model(model).forward).parameters) - {"labels"}
    with in_evaluation_mode(model), tapping(site_map, {site: counting(site) for site in sites}):
        for batch in batches:
            inputs: dict[str, Any] = {name: value for name, value in batch.items() if name in takes}
            mask = inputs.get("attention_mask")
            model(**inputs, use_cache=False)
    for site in sites:
        require_finite(f"what the site '{site}' reads", sums[site])
        if counts[site] == 0 or sums[site] == 0:
            why = "no batch was given" if counts[site] == 0 else "all it read was zero"
            raise InputError(f"cannot measure the scale of '{site}': {why}. Give batches of your training data.")
    return {site: (sums[site] / counts[site]) ** 0.5 for site in sites}
