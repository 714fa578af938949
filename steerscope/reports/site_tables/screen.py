"""What a site table says of scores, on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from steerscope.experiments.site_tables.across import margins_over, mean_of_drawn, mean_of_independent
from steerscope.experiments.site_tables.judging import DEPTH_THEN_KIND, Judgement
from steerscope.reports.site_tables.tables import attainable_sentence, pairs_sentence, score_table, signed
from steerscope.reports.tables import TextTable, plain_table
from steerscope.reports.vocabulary import clean, count, score_words

# Rows that a screen has room for.
ROWS = 9


def headline(result: Judgement) -> str:
    """Return which score agrees best with training, and whether the table may say so."""
    plain = (*result.baselines, *result.trained)
    others = {name: one for name, one in result.scores.items() if name not in plain} or result.scores
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


def across(results: Sequence[Judgement]) -> str:
    """Return, for every score that all tables have, its mean margin over the baseline fixed in advance.

    Returns:
        A plain table.
    """
    shared = [name for name in results[0].scores if all(name in one.scores for one in results)]
    rows: list[tuple[str, ...]] = []
    for name in shared:
        if name == DEPTH_THEN_KIND:
            continue
        margins = margins_over(results, name, DEPTH_THEN_KIND)
        drawn = mean_of_drawn(margins)
        rows.append(
            (
                str(len(rows) + 1),
                score_words(name).label,
                signed(mean_of_independent(margins)),
                "-" if drawn is None else signed(drawn),
            )
        )
    columns = ("", "score", "over these tables", "over tasks like these")
    note = "Mean over tables of Spearman minus that of depth, then kind; tables that are not admitted are among them."
    note = "" if all(one.admission.holds for one in results) else note
    table = TextTable(
        f"Over {len(results)} tables, margin over depth, then kind", columns, frozenset(columns[2:]), tuple(rows), note
    )
    return plain_table(table)
