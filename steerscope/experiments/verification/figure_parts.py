"""What the figures of a verification share: the look of lines, logarithmic axes, title and foot."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from steerscope.analysis.report.figure_style import ACCENT, figure_text, finish_with_foot
from steerscope.experiments.verification.results import Verification

# One look per line of a figure, in order: colour, marker, dash.
LOOKS = (
    (ACCENT, "o", "-"),
    ("#b35900", "^", "--"),
    ("#007a5a", "D", "-."),
    ("#a8518a", "s", ":"),
    ("#3b3b3b", "v", "--"),
    ("#0072b2", "P", "-"),
    ("#b8860b", "<", "-."),
)


def finish(figure: Figure, found: Verification, title: str, handles: Any = (), columns: int = 3) -> None:
    """Add title, legend, and a foot that says what the figure is of."""
    parts = [figure_text(found.subject, 28)]
    if found.finetune:
        parts.append(f"{found.finetune['steps']} steps on {figure_text(found.finetune['task'], 12)}")
    finish_with_foot(figure, " | ".join([*parts, f"seed {found.seed}"]), title, list(handles), columns)


def line(ax: Axes, x: Any, y: Any, place: int, label: str) -> Line2D:
    """Draw one line in the look of its place."""
    colour, marker, dash = LOOKS[place % len(LOOKS)]
    (drawn,) = ax.plot(x, y, color=colour, marker=marker, linestyle=dash, markersize=4.5, linewidth=1.4, label=label)
    return drawn


def log_scale(ax: Axes, which: str, base: int = 10) -> None:
    """Make the axis ``"x"`` or ``"y"`` logarithmic with ticks in plain numbers (the style draws no powers)."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=base)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
