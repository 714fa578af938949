"""A verification on one screen."""

from __future__ import annotations

import dataclasses

from steerscope.experiments.verification.results import Verification
from steerscope.reports.tables import plain_table
from steerscope.reports.verification.tables import headline, proposition_table


def paragraphs(found: Verification) -> list[str]:
    """Return the verdicts, warnings, and the propositions: those that fail first."""
    first = sorted(found.propositions, key=lambda one: one.name not in found.failed)
    table = proposition_table(dataclasses.replace(found, propositions=tuple(first)))
    return [headline(found), *(f"Warning: {sentence}" for sentence in found.warnings), plain_table(table)]
