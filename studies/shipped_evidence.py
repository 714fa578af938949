"""What the package's reports know of training: the kept site tables, short enough to travel with it.

Of every table, admitted or not: what it is of, whether it may judge scores and why not, what training came to at each
site, and how every score fared, for each number of output directions that the table's sites were ranked with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerscope.experiments.site_tables.admission import BEST
from steerscope.experiments.site_tables.common import common_outcomes
from steerscope.experiments.site_tables.judging import DEPTH_THEN_KIND, FIXED, JudgedScore, Judgement, judge
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.reports.vocabulary import score_words

# The number of output directions before it was written into tables.
PROBES_BEFORE = 4


def probes_of(table: SiteTable) -> int:
    """Return with how many output directions per example the sites of a table were ranked."""
    return table.ranking.settings.num_probes or PROBES_BEFORE


def shipped(
    table: SiteTable, found: Judgement, again: Mapping[int, Mapping[str, Mapping[str, float]]]
) -> dict[str, Any]:
    """Return what reports may say of one table.

    Args:
        table: The table.
        found: What it says of its own scores.
        again: Scores of its sites from other rankings, by the number of output directions, then name and site.

    Returns:
        What goes into the package's file for this table.
    """
    rankings = {probes_of(table): found}
    for number, scores in again.items():
        if number not in rankings:
            rankings[number] = judge(table, scores)
    outcomes = common_outcomes(table).outcomes
    best = sorted(outcomes, key=lambda one: sum(one.selection_losses))[:BEST]
    return {
        "model": Path(table.model.name).name,
        "sha256": table.model.sha256,
        "setup": table.model.setup,
        "layout": table.model.layout,
        "task": table.task,
        "n_sites": found.num_sites,
        "n_seeds": found.num_seeds,
        "steps": table.steps,
        "admitted": found.admission.holds,
        "why_not": " ".join(one.sentence for one in found.admission.criteria if not one.holds),
        "attainable": _rounded(found.attainable.spearman),
        "baseline": score_words(DEPTH_THEN_KIND).label,
        "baseline_spearman": _rounded(found.scores[DEPTH_THEN_KIND].agreement.spearman),
        "before": {"loss": _rounded(table.base.loss), "accuracy": _rounded(table.base.accuracy)},
        "best": [{"site": str(one.site), "accuracy": _rounded(one.accuracy)} for one in best],
        # Mean, lowest and highest test loss over seeds; a site where a run diverged is left out.
        "trained": {
            str(one.site): [round(v, 3) for v in (one.loss, min(one.losses), max(one.losses))]
            for one in outcomes
            if math.isfinite(one.loss)
        },
        "rankings": [
            {
                "n_probes": number,
                "scores": {
                    name: _numbers(score)
                    for name, score in judged.scores.items()
                    if name in (again.get(number) or table.scores) and name not in FIXED
                },
            }
            for number, judged in sorted(rankings.items())
        ],
    }


def _numbers(score: JudgedScore) -> dict[str, float | None]:
    share, agreement = score.pairs.share, score.agreement
    return {
        "spearman": _rounded(agreement.spearman),
        "low": _rounded(agreement.low),
        "high": _rounded(agreement.high),
        "partial": _rounded(agreement.partial),
        "pairs": None if share is None else _rounded(share.value),
        "pairs_low": None if share is None else _rounded(share.low),
        "pairs_high": None if share is None else _rounded(share.high),
        "n_pairs": score.pairs.num_pairs,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
