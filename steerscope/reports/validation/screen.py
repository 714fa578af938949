"""A validation on one screen."""

from __future__ import annotations

import dataclasses

from steerscope.experiments.validation.result import Validation
from steerscope.reports.tables import plain_table
from steerscope.reports.validation.tables import score_table, sentences


def paragraphs(result: Validation) -> list[str]:
    """Return what was found in sentences, and how well every score foresaw it."""
    if not result.agreements:
        return [result.headline()]
    table = score_table(result)
    # Without the last column, the comparison with the best baseline, which a screen has no room for.
    narrow = dataclasses.replace(table, columns=table.columns[:-1], rows=tuple(row[:-1] for row in table.rows))
    return [*sentences(result), plain_table(narrow)]
