"""A comparison on one screen."""

from __future__ import annotations

from steerscope.experiments.comparison.groups import Comparison
from steerscope.reports.comparison.tables import comparison_table
from steerscope.reports.tables import plain_table


def paragraphs(comparison: Comparison) -> list[str]:
    """Return the table."""
    return [plain_table(comparison_table(comparison))]
