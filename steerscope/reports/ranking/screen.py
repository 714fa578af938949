"""A ranking on one screen."""

from __future__ import annotations

from steerscope.analysis.results import Ranking
from steerscope.reports.ranking import verdict
from steerscope.reports.ranking.tables import site_table
from steerscope.reports.ranking.text import warning_sentences
from steerscope.reports.tables import plain_table
from steerscope.reports.vocabulary import clean


def headline(ranking: Ranking) -> str:
    """Return of what it is a ranking, and what it says, in one sentence."""
    subject = f"{clean(ranking.model.name, 40)} on {clean(ranking.task, 40)}"
    return f"{subject}, {ranking.n_examples} examples: {verdict.headline(ranking)}"


def paragraphs(ranking: Ranking) -> list[str]:
    """Return the headline, the answer, what a reader must know, and the best sites."""
    warnings = (f"Warning: {sentence}" for sentence in warning_sentences(ranking))
    table = site_table(ranking, 8)
    answer = verdict.answer_sentences(ranking)[:2]
    return [headline(ranking), *answer, *warnings, *([plain_table(table)] if table.rows else [])]
