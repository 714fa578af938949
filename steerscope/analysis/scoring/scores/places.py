"""Baselines that need no derivative: where a site is, and how large its activations are."""

from __future__ import annotations

import random as random_numbers
from functools import partial

from steerscope.analysis.scoring.scores.candidate import Candidate, Place
from steerscope.analysis.scoring.scores.score import Needs, register_score
from steerscope.site_kinds import SiteKind
from steerscope.sites import Site

# Fixed in docs/validation_plan_3.md, which says why.
KIND_ORDER = (
    SiteKind.RESID_POST,
    SiteKind.RESID_MID,
    SiteKind.MLP_IN,
    SiteKind.MLP_OUT,
    SiteKind.MLP_HIDDEN,
    SiteKind.ATTN_OUT,
    SiteKind.ATTN_HEADS,
    SiteKind.RESID_PRE,
)

_baseline = partial(register_score, needs=Needs.PLACE, source="baseline", is_baseline=True)


def place_of(candidate: Candidate) -> Place:
    """Return where a single site is."""
    assert candidate.place is not None, "scores of a place are computed for single sites"
    return candidate.place


@_baseline(label="activation norm", meaning="how large the activations are at the site")
def activation_norm(candidate: Candidate) -> float:
    """Root mean square of what the site reads."""
    return place_of(candidate).read_rms


@_baseline(label="depth", meaning="how early the layer is")
def depth(candidate: Candidate) -> float:
    """Minus the layer."""
    return -float(place_of(candidate).site.layer)


@_baseline(label="middle layer", meaning="how close the layer is to the middle")
def middle_layer(candidate: Candidate) -> float:
    """Minus the distance to the middle layer."""
    place = place_of(candidate)
    return -abs(place.site.layer - (place.num_layers - 1) / 2)


@_baseline(label="last layer", meaning="how late the layer is")
def last_layer(candidate: Candidate) -> float:
    """The layer."""
    return float(place_of(candidate).site.layer)


@_baseline(label="depth, then kind", meaning="how early the layer is, and within a layer a fixed order of kinds")
def depth_then_kind(candidate: Candidate) -> float:
    """Minus the layer, minus a tenth for every kind that comes before it in `KIND_ORDER`."""
    return layer_then_kind(place_of(candidate).site)


def layer_then_kind(site: Site) -> float:
    """Return the score of :func:`depth_then_kind`, which needs the site's name alone."""
    return -float(site.layer) - KIND_ORDER.index(site.kind) / 10


@_baseline(label="random", meaning="an order drawn at random", source="the null")
def random(candidate: Candidate) -> float:
    """Uniform in [0, 1), fixed by seed, site and family."""
    return random_numbers.Random(f"{candidate.seed} {place_of(candidate).site} {candidate.family}").random()


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
