"""The baseline that needs no model at all: an order by depth and kind, its constants fixed on other tasks.

The fit is least squares of trained rank (0 the best site, 1 the worst) on depth (0 the first block, 1 the last) and
one constant per kind. Constants come from ``constants.json``, one entry per study; a study is never predicted
from itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from steerscope.site_kinds import Place
from steerscope.sites import Site

CONSTANTS = Path(__file__).with_name("constants.json")


def fit(sites: Sequence[Site], losses: NDArray[np.float64], num_layers: int) -> dict[str, Any]:
    """Return the constants of one study: ``depth`` and, per kind it trained at, one number.

    Args:
        sites: Sites trained at.
        losses: ``site``: mean trained loss.
        num_layers: Blocks of the model.

    Returns:
        Constants as ``constants.json`` has them, rounded to four digits.
    """
    kinds = sorted({site.kind.value for site in sites})
    design = np.array([[_depth(site, num_layers), *(float(site.kind == kind) for kind in kinds)] for site in sites])
    rank = (stats.rankdata(losses) - 1) / max(len(losses) - 1, 1)
    found = np.linalg.lstsq(design, rank, rcond=None)[0]
    return {
        "depth": round(float(found[0]), 4),
        "kinds": {kind: round(float(v), 4) for kind, v in zip(kinds, found[1:], strict=True)},
    }


def depth_and_kind(
    sites: Sequence[Site], num_layers: int, studies: Mapping[str, Mapping[str, Any]]
) -> NDArray[np.float64] | None:
    """Return the baseline's score per site (higher is better), the mean over studies; ``None`` without any.

    A kind that a study did not train at gets the mean of its constants.

    Args:
        sites: The sites to score.
        num_layers: Number of blocks of the model.
        studies: Per earlier study, its ``depth`` (slope of the loss in the relative depth) and ``kinds`` (constant per
            kind of site).

    Returns:
        Minus the predicted rank (0 the best site, 1 the worst), one value per site.
    """
    if not studies:
        return None
    total = np.zeros(len(sites))
    for constants in studies.values():
        kinds: Mapping[str, float] = constants["kinds"]
        usual = float(np.mean(list(kinds.values())))
        for index, site in enumerate(sites):
            total[index] -= constants["depth"] * _depth(site, num_layers) + kinds.get(site.kind.value, usual)
    return total / len(studies)


def known_studies() -> dict[str, dict[str, Any]]:
    """Return the constants of every study that is kept with the package, by the study's name."""
    if not CONSTANTS.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    return found


def _depth(site: Site, num_layers: int) -> float:
    # What enters the first block lies before it; blocks lie at 0 to 1.
    place = -1 if site.kind.facts.place is Place.ENTERS else site.layer
    return place / max(num_layers - 1, 1)
