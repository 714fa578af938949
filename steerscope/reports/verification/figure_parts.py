"""What the figures of a verification share: lines by their place, title and foot."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerscope.errors import InputError
from steerscope.experiments.verification.results import Verification
from steerscope.reports.figure_style import LINE_LOOKS, draw_line, figure_text, finish_with_foot
from steerscope.reports.vocabulary import clean


def finish(figure: Figure, found: Verification, title: str, handles: Any = (), columns: int = 3) -> None:
    """Add title, legend, and a foot that says what the figure is of.

    Args:
        figure: The figure, its axes drawn.
        found: What it is of.
        title: A few words.
        handles: Entries of the legend.
        columns: Entries per row of the legend.
    """
    parts = [figure_text(found.subject, 28)]
    if found.finetune:
        parts.append(f"{found.finetune.steps} steps on {figure_text(found.finetune.task, 12)}")
    finish_with_foot(figure, " | ".join([*parts, f"seed {found.seed}"]), title, list(handles), columns)


def measured(found: Verification, name: str) -> Any:
    """Return a measurement.

    Args:
        found: The verification.
        name: Name of the measurement.

    Returns:
        Its entries, as JSON has them.

    Raises:
        InputError: It was not made: on random blocks, in a quick run, or on a model too large for it.
    """
    entries = found.measurements.get(name)
    if not entries:
        had = ", ".join(sorted(found.measurements)) or "none"
        raise InputError(
            f"this verification of {clean(found.subject, 60)} has no measurement {name!r}; it has {had}. Verify a "
            "model, without quick=True."
        )
    return entries


def line(ax: Axes, x: Any, y: Any, place: int, label: str) -> Line2D:
    """Draw one line in the look of its place.

    Args:
        ax: The axes.
        x: Values on the horizontal axis.
        y: Values on the vertical axis, as many.
        place: Index of the line, which decides its look.
        label: Name in the legend.

    Returns:
        The line, for the legend.
    """
    return draw_line(ax, x, y, LINE_LOOKS[place % len(LINE_LOOKS)], label)
