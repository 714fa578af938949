"""Baselines that need no derivative: where a site is and how large its activations are."""

from __future__ import annotations

import random

from steerscope.sites import Site

PLACE_SCORES = ("activation_norm", "depth", "middle_layer", "last_layer", "random")


def place_scores(site: Site, family: str, num_layers: int, read_rms: float, seed: int) -> dict[str, float]:
    """Return the baselines of one candidate; higher is better.

    ``depth`` prefers early layers, ``middle_layer`` those nearest the middle, ``last_layer`` late ones. ``random``
    is uniform in [0, 1), fixed by seed, site and family. ``activation_norm`` is in residual-stream units.
    """
    return {
        "activation_norm": read_rms,
        "depth": -float(site.layer),
        "middle_layer": -abs(site.layer - (num_layers - 1) / 2),
        "last_layer": float(site.layer),
        "random": random.Random(f"{seed} {site} {family}").random(),
    }
