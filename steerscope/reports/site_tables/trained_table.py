"""A site table's outcomes, and which sites cannot be told from the best one."""

from __future__ import annotations

import math

from steerscope.experiments.agreement.layer_bootstrap import mean_of
from steerscope.experiments.site_tables.table import SiteOutcome, SiteTable
from steerscope.reports.tables import TextTable


def best_sites(table: SiteTable) -> list[SiteOutcome]:
    """Return the best site and those whose paired difference to it over seeds holds zero, lowest loss first.

    Student's interval (95%) of the difference over the seeds that both have; with fewer than two, the best alone.
    """
    order = sorted(table.outcomes(), key=lambda one: one.loss)
    return [order[0], *(one for one in order[1:] if _is_as_low(order[0], one))]


def _is_as_low(best: SiteOutcome, other: SiteOutcome) -> bool:
    shared = [seed for seed in best.seeds if seed in other.seeds]
    pairs = [(other.losses[other.seeds.index(seed)], best.losses[best.seeds.index(seed)]) for seed in shared]
    differences = [one - two for one, two in pairs if math.isfinite(one) and math.isfinite(two)]
    if len(differences) < max(2, len(shared)):
        return False
    return mean_of(differences).low <= 0


def outcome_table(table: SiteTable) -> TextTable:
    """Return every site that was tested, best first."""
    equal = {str(one.site) for one in best_sites(table)}
    columns = ("rank", "site", "loss", "over seeds", "accuracy", "rate", "seeds", "")
    rows = []
    for place, one in enumerate(sorted(table.outcomes(), key=lambda one: one.loss), 1):
        finite = [loss for loss in one.losses if math.isfinite(loss)]
        rows.append(
            (
                str(place),
                str(one.site),
                f"{one.loss:.4f}" if math.isfinite(one.loss) else "diverged",
                f"{min(finite):.3f} to {max(finite):.3f}" if len(finite) > 1 else "",
                f"{one.accuracy:.1%}",
                f"{one.learning_rate:.3g}" + ("" if one.interior or not one.tuned else " *"),
                str(len(one.losses)),
                "first" if place == 1 else "undetermined" if str(one.site) in equal else "",
            )
        )
    edge = any(row[5].endswith("*") for row in rows)
    return TextTable(
        f"All {len(rows)} sites, best first" if len(rows) > 1 else "The site",
        columns,
        frozenset(columns) - {"site", ""},
        tuple(rows),
        "Mean test loss over seeds, nats. Undetermined: the seeds cannot tell it from the best (the 95% interval of "
        "the paired difference holds zero)." + (" * a rate at the edge of those tried." if edge else ""),
    )
