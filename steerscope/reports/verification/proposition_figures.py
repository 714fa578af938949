"""Figures of the propositions of a verification: their verdicts, and the curves that their checks recorded."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from steerscope.errors import InputError
from steerscope.experiments.verification.results import Verification
from steerscope.reports.figure_style import INK, MUTED, PAPER, WIDTH, figure_text, log_scale, new_figure, styled
from steerscope.reports.verification.figure_parts import finish, line
from steerscope.reports.vocabulary import count

# Letter, fill and ink of a verdict's cell: lightness alone tells them apart.
VERDICT_LOOKS = {
    "holds": ("H", "#dbe6f4", INK),
    "holds with correction": ("C", "#7fa6d6", INK),
    "not applicable": ("N", PAPER, MUTED),
    "fails": ("F", "#5c1010", "white"),
}


@styled
def plot_verdicts(found: Verification) -> Figure:
    """Draw one lettered cell per proposition."""
    columns = 7
    rows = -(-len(found.propositions) // columns)
    figure, ax = new_figure(0.5 * rows + 1.5)
    for index, one in enumerate(found.propositions):
        row, column = divmod(index, columns)
        letter, fill, ink = VERDICT_LOOKS[one.verdict]
        ax.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], facecolor=fill, edgecolor=PAPER)
        if one.verdict == "not applicable":
            ax.fill(
                [column + 0.02, column + 0.98, column + 0.98, column + 0.02],
                [row + 0.03, row + 0.03, row + 0.97, row + 0.97],
                facecolor="none",
                edgecolor="#b9c0ca",
                hatch="////",
            )
        box = {"facecolor": fill, "edgecolor": "none", "pad": 1.5}
        ax.text(column + 0.5, row + 0.5, f"{one.name} {letter}", color=ink, ha="center", va="center", bbox=box)
    ax.set_xlim(0, columns)
    ax.set_ylim(rows, 0)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    counts = found.counts()
    handles = [
        Patch(facecolor=fill, edgecolor=MUTED, label=f"{letter}: {verdict} ({counts[verdict]})")
        for verdict, (letter, fill, _) in VERDICT_LOOKS.items()
    ]
    finish(figure, found, f"Verdicts on {count(len(found.propositions), 'proposition')}", handles, 2)
    return figure


# Points of one curve in a small panel.
MOST_POINTS = 24


@styled
def plot_curves(found: Verification) -> Figure:
    """Draw the curves that checks of propositions recorded, one small panel per curve.

    Returns:
        The figure.

    Raises:
        InputError: No curve was recorded.
    """
    curves = [(one.name, name, data) for one in found.propositions for name, data in one.series.items()]
    curves = [entry for entry in curves if len(entry[2].x) > 1][:15]
    if not curves:
        raise InputError("no proposition of this verification recorded a curve. Verify more of them.")
    rows = -(-len(curves) // 3)
    figure = Figure(figsize=(WIDTH, 1.75 * rows + 0.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, 3)).flatten()
    for ax in panels[len(curves) :]:
        ax.set_visible(False)
    for ax, (proposition, name, data) in zip(panels, curves, strict=False):
        pairs = [(x, y) for x, y in zip(data.x, data.y, strict=True) if x is not None and y is not None]
        if len(pairs) > MOST_POINTS:  # a spectrum has one per direction: more than a small panel shows
            pairs = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, MOST_POINTS).round().astype(int))]
        x, y = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        line(ax, x, y, 0, name)
        if len(x) and (x > 0).all() and x.max() > 9.9 * x.min():
            log_scale(ax, "x")
        if len(y) and (y > 0).all() and y.max() > 9.9 * y.min():
            log_scale(ax, "y")
        ax.set_title(figure_text(f"{proposition} {name}", 56, lines_of=28), fontsize=8, loc="left")
        ax.set_xlabel(figure_text(data.x_name, 64, lines_of=32), fontsize=7)
        ax.set_ylabel(figure_text(data.y_name, 44, lines_of=22), fontsize=7)
        ax.tick_params(labelsize=6.5)
        ax.minorticks_off()
    finish(figure, found, "Curves behind the verdicts")
    return figure
