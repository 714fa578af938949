"""A ranking on one screen."""

from __future__ import annotations

from steerscope.analysis.results import Ranking
from steerscope.reports.ranking import text
from steerscope.reports.ranking.tables import site_table
from steerscope.reports.tables import plain_table
from steerscope.reports.vocabulary import clean


def headline(ranking: Ranking) -> str:
    """Return of what it is a ranking, and what it says, in one sentence."""
    subject = f"{clean(str(ranking.model.get('name', 'model')), 40)} on {clean(ranking.task, 40)}"
    return f"{subject}, {ranking.n_examples} examples: {text.headline(ranking)}"


def paragraphs(ranking: Ranking) -> list[str]:
    """Return the headline, what a reader must know, and the best sites."""
    warnings = (f"Warning: {sentence}" for sentence in ranking.warnings)
    return [headline(ranking), *warnings, plain_table(site_table(ranking))]
