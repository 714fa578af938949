"""How far the right statements are from the wrong ones: errors of claims, controls and public forms in one figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from steerscope.experiments.verification.results import Measured, PropositionResult, Verification
from steerscope.reports.plain_figures import SMALLEST, plot_rows

CLAIM, CONTROL, PUBLIC = "claim, largest error", "negative control, smallest error", "public form, largest error"


def plot_margins(
    found: Verification | Sequence[PropositionResult],
    title: str = "Claims and their negative controls",
    foot: str | None = None,
) -> Figure:
    """Draw per proposition the largest error of its claim and the smallest of its negative controls.

    Only measurements that must be *small* count (an upper bound and no lower one, or exactly zero); slopes and
    lower bounds are left out, and so is a proposition without any.

    Args:
        found: A verification, or some propositions' results.
        title: The figure's.
        foot: What it is of, in a line; of a verification, its subject and seed unless given.

    Returns:
        The figure.

    Raises:
        InputError: No proposition has such a measurement.
    """
    if isinstance(found, Verification):
        foot = foot or f"{found.subject} | seed {found.seed}"
        found = found.propositions
    rows: dict[str, dict[str, float]] = {}
    for one in found:
        claims, controls, public = map(_errors, (one.claims, one.controls, one.published_form))
        if not claims:
            continue
        row = {CLAIM: max(claims)}
        if controls:
            row[CONTROL] = min(controls)
        if public:
            row[PUBLIC] = max(public)
        rows[f"{one.name} {one.title}"] = row
    return plot_rows(
        rows, f"relative error (exact zeros at {SMALLEST:g})", title, foot or "", nulls={"rounding of float64": 2.2e-16}
    )


def _errors(measured: Sequence[Measured]) -> list[float]:
    return [
        max(one.value, 0.0)
        for one in measured
        if one.value is not None and one.high is not None and one.low in (None, 0.0)
    ]
