"""Baseline: adapt the weight matrices that fit what they read least."""

from __future__ import annotations

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.places import place_of
from steerscope.analysis.scoring.scores.score import Needs, Unit, register_score


@register_score(
    label="normalised feature norm",
    meaning="how little the linear maps at the site amplify what they read, beside a random matrix of their size",
    unit=Unit.RATIO,
    needs=Needs.PLACE,
    cost="norms of what linear maps read and write",
    source="after the idea of arXiv 2506.20629",
    is_baseline=True,
)
def feature_norm(candidate: Candidate) -> float:
    """Minus the mean over tokens of `|W z| sqrt(d_in) / (|W|_F |z|)`, `W` the maps that read the site, else write it.

    1 is what a random matrix of that size has. The paper compares types of weight matrix by the growth of feature norms
    with training, for which a low norm leaves room; that a site has the number of the maps at it is this project's
    reading, and sites around one map share it.

    Returns:
        One number, the same with every group left out.
    """
    return -place_of(candidate).stats.feature_norm
