"""Baseline: steering works where the logit lens can read the answer."""

from __future__ import annotations

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.places import place_of
from steerscope.analysis.scoring.scores.score import Needs, Unit, register_score


@register_score(
    label="logit-lens accuracy",
    meaning="how often the final norm and the unembedding, applied to the stream behind the site, find the answer",
    unit=Unit.RATIO,
    needs=Needs.PLACE,
    cost="the unembedding of the choices' tokens, times one vector per stream and prompt",
    source="after the idea of arXiv 2604.15557",
    is_baseline=True,
)
def lens_accuracy(candidate: Candidate) -> float:
    """Share of 64 prompts whose right choice has the largest logit, `W_U norm(h)` of the stream `h` behind the site.

    ``h`` is taken at the last token before the answer, from the first stream of the block that an edit at the site is
    part of. Choices stand for their first tokens; without choices the answer competes with the other prompts' answers.
    The paper speaks of layers and of two-way concepts: kinds that end in one stream share its number here.

    Returns:
        One number, the same with every group left out.
    """
    return place_of(candidate).stats.lens_accuracy
