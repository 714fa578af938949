"""Baselines that need no derivative: where a site is, and how large its activations are."""

from __future__ import annotations

import random as random_numbers
from functools import partial

from steerscope.analysis.scoring.scores.candidate import Candidate, Place
from steerscope.analysis.scoring.scores.score import Needs, register_score

_baseline = partial(register_score, needs=Needs.PLACE, source="baseline", is_baseline=True)


def _place(candidate: Candidate) -> Place:
    assert candidate.place is not None, "scores of a place are computed for single sites"
    return candidate.place


@_baseline(label="activation norm", meaning="how large the activations are at the site")
def activation_norm(candidate: Candidate) -> float:
    """Root mean square of what the site reads."""
    return _place(candidate).read_rms


@_baseline(label="depth", meaning="how early the layer is")
def depth(candidate: Candidate) -> float:
    """Minus the layer."""
    return -float(_place(candidate).site.layer)


@_baseline(label="middle layer", meaning="how close the layer is to the middle")
def middle_layer(candidate: Candidate) -> float:
    """Minus the distance to the middle layer."""
    place = _place(candidate)
    return -abs(place.site.layer - (place.num_layers - 1) / 2)


@_baseline(label="last layer", meaning="how late the layer is")
def last_layer(candidate: Candidate) -> float:
    """The layer."""
    return float(_place(candidate).site.layer)


@_baseline(label="random", meaning="an order drawn at random", source="the null")
def random(candidate: Candidate) -> float:
    """Uniform in [0, 1), fixed by seed, site and family."""
    return random_numbers.Random(f"{candidate.seed} {_place(candidate).site} {candidate.family}").random()


@register_score(
    label="depth and kind",
    meaning="the layer and the kind of site, weighed as trainings elsewhere suggest",
    needs=Needs.STUDIES,
    source="this project, docs/validation.md",
    is_baseline=True,
)
def depth_and_kind(candidate: Candidate) -> float:
    """Linear in the layer plus a constant per kind, fitted on the losses of other studies; made by `validate` alone."""
    raise NotImplementedError("computed from kept studies, for all sites at once")
