"""What a site table says of scores, on one screen."""

from __future__ import annotations

from steerscope.experiments.site_tables.judging import Judgement
from steerscope.reports.site_tables.tables import attainable_sentence, pairs_sentence, score_table
from steerscope.reports.tables import plain_table
from steerscope.reports.vocabulary import clean, count

# Rows that a screen has room for.
ROWS = 9


def headline(result: Judgement) -> str:
    """Return which score agrees best with training, and whether the table may say so."""
    others = {name: one for name, one in result.scores.items() if name not in result.baselines} or result.scores
    best = max(others, key=lambda name: others[name].agreement.spearman)
    verdict = "admitted" if result.admission.holds else "NOT admitted to judge scores"
    return (
        f"{clean(result.table, 60)} ({verdict}): of {count(len(others), 'score')}, {clean(best, 40)} agrees best with "
        f"training at {result.num_sites} sites, Spearman {others[best].agreement.spearman:.2f}."
    )


def paragraphs(result: Judgement) -> list[str]:
    """Return the verdict, what is attainable, and one line per score."""
    left = f" ({count(result.num_left_out, 'site')} without all of the seeds left out)" if result.num_left_out else ""
    what = (
        f"{clean(result.table, 100)}: {result.num_sites} sites of {count(result.num_layers, 'layer')}, "
        f"{count(result.num_seeds, 'seed')}{left}."
    )
    table = score_table(result, limit=ROWS)
    return [what, result.admission.sentence, attainable_sentence(result), pairs_sentence(result), plain_table(table)]
