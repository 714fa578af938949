"""Figures of any numbers in the project's look: lines in panels, and rows of values on a logarithmic axis.

For notebooks and one-off questions; results with a class of their own have figures of their own. Lines and marks
differ in shape and dash as well as colour, so that they can be told apart without colour vision.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from steerscope.errors import InputError
from steerscope.reports.figure_style import (
    INK,
    LINE_LOOKS,
    NULL,
    PAPER,
    WIDTH,
    draw_line,
    figure_bytes,
    figure_text,
    finish_with_foot,
    log_scale,
    name_rows,
    styled,
)

NULL_DASHES: tuple[Literal["--", ":", "-."], ...] = ("--", ":", "-.")
# Rounding may give an exact zero, which a logarithmic axis cannot show.
SMALLEST = 1e-17


@dataclass(frozen=True)
class Panel:
    """One pair of axes of :func:`plot_lines`.

    Attributes:
        lines: ``(x, y)`` by name, drawn in the order of :data:`LINE_LOOKS`.
        y_name: What is drawn, with its unit.
        nulls: Reference values by name, drawn as dashed horizontal lines.
        marks: Reference values of x by name, drawn as dotted vertical lines.
        log: Which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        y_range: Limits of the vertical axis, or ``None``.
    """

    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    y_name: str
    nulls: Mapping[str, float] | None = None
    marks: Mapping[str, float] | None = None
    log: str = ""
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """A drawn figure with words for those who cannot see it; notebooks show it.

    Attributes:
        png: The picture.
        alt: What it shows.
    """

    png: bytes
    alt: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png).decode("ascii"), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def picture(figure: Figure, alt: str) -> Picture:
    """Return a figure as a notebook shows it; the same bytes for the same figure every time.

    Args:
        figure: The figure.
        alt: What a reader hears who does not see it.

    Returns:
        A PNG image with its text.
    """
    return Picture(figure_bytes(figure, "png"), alt)


@styled
def plot_lines(panels: Panel | Sequence[Panel], x_name: str, title: str, foot: str, *, height: float = 2.5) -> Figure:
    """Draw lines in panels one above the other that share their horizontal axis and their legend.

    A name that occurs in several panels has one look and one entry in the legend.

    Args:
        panels: One panel or several.
        x_name: Label of the horizontal axis, with its unit.
        title: A few words.
        foot: What the figure is of: model, task, seed.
        height: Inches per panel.

    Returns:
        The figure.

    Raises:
        InputError: No panel.
    """
    panels = [panels] if isinstance(panels, Panel) else list(panels)
    if not panels:
        raise InputError("there is no panel to draw; give at least one.")
    figure = Figure(figsize=(WIDTH, height * len(panels) + 1.2), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    handles: dict[str, Line2D] = {}
    for ax, panel in zip(axes, panels, strict=True):
        for name, (x, y) in panel.lines.items():
            known = handles.get(name)
            place = len([h for h in handles.values() if h.get_marker() != ""])
            look = LINE_LOOKS[place % len(LINE_LOOKS)] if known is None else None
            handles[name] = _line(ax, x, y, name, look, known)
        for name, value in (panel.nulls or {}).items():
            if name not in handles:
                drawn = sum(handle.get_color() == NULL for handle in handles.values())
                dash = NULL_DASHES[drawn % len(NULL_DASHES)]
                handles[name] = Line2D([], [], color=NULL, linestyle=dash, marker="", label=name)
            ax.axhline(value, color=NULL, linewidth=1.3).set_linestyle(handles[name].get_linestyle())
        for name, value in (panel.marks or {}).items():
            ax.axvline(value, color=INK, linestyle=":", linewidth=1.4)
            handles.setdefault(name, Line2D([], [], color=INK, linestyle=":", marker="", label=name))
        doubling = any(2 in x for x, _ in panel.lines.values())  # ranks and the like: 1, 2, 4, ...
        for which in panel.log:
            log_scale(ax, which, 2 if which == "x" and doubling else 10)
        if panel.y_range:
            ax.set_ylim(*panel.y_range)
        ax.set_ylabel(panel.y_name)
        ax.grid(axis="both" if panel.log == "xy" else "y")
    places = [place for panel in panels for x, _ in panel.lines.values() for place in x]
    if all(float(place).is_integer() for place in places) and not any("x" in panel.log for panel in panels):
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel(x_name)
    longest = max(map(len, handles), default=0)
    columns = 3 if longest <= 14 else 2 if longest <= 30 else 1
    finish_with_foot(figure, figure_text(foot, 90), title, list(handles.values()), columns)
    return figure


def _line(
    ax: Axes, x: Sequence[float], y: Sequence[float], name: str, look: tuple[str, str, str] | None, known: Line2D | None
) -> Line2D:
    if look is None:
        assert known is not None  # one of the two is always there
        look = (str(known.get_color()), str(known.get_marker()), str(known.get_linestyle()))
    return draw_line(ax, x, y, look, name)


@styled
def plot_rows(
    rows: Mapping[str, Mapping[str, float]],
    x_name: str,
    title: str,
    foot: str,
    *,
    nulls: Mapping[str, float] | None = None,
    log: bool = True,
) -> Figure:
    """Draw one row per name with one mark per group: small numbers that must be told from large ones.

    Args:
        rows: Per row the value of each group; a group may be missing. Zeros are drawn at 1e-17 on a logarithmic axis.
        x_name: Label of the horizontal axis, with its unit.
        title: A few words.
        foot: What the figure is of.
        nulls: Reference values by name, drawn as dashed vertical lines.
        log: Whether the axis is logarithmic.

    Returns:
        The figure.

    Raises:
        InputError: No row.
    """
    if not rows:
        raise InputError("there is no row to draw; give at least one.")
    groups = list(dict.fromkeys(group for values in rows.values() for group in values))
    figure = Figure(figsize=(WIDTH, 0.3 * len(rows) + 1.7), layout="constrained")
    ax = figure.subplots()
    handles: list[Line2D] = []
    for place, group in enumerate(groups):
        colour, marker, _ = LINE_LOOKS[place % len(LINE_LOOKS)]
        points = [(values[group], row) for row, values in enumerate(rows.values()) if group in values]
        shown = [max(abs(value), SMALLEST) if log else value for value, _ in points]
        face = colour if place % 2 == 0 else PAPER
        ax.plot(
            shown, [row for _, row in points], marker, color=colour, markerfacecolor=face, markersize=7, clip_on=False
        )
        handles.append(
            Line2D([], [], color=colour, marker=marker, markerfacecolor=face, markersize=7, linestyle="", label=group)
        )
    for place, (name, value) in enumerate((nulls or {}).items()):
        dash = NULL_DASHES[place % len(NULL_DASHES)]
        ax.axvline(value, color=NULL, linestyle=dash, linewidth=1.3)
        handles.append(Line2D([], [], color=NULL, linestyle=dash, label=name))
    if log:
        log_scale(ax, "x")
    name_rows(ax, [figure_text(name, 44) for name in rows], room=0.5)
    ax.grid(axis="both")
    ax.set_xlabel(x_name, loc="right")  # row names are wide, the axis is short
    longest = max(len(str(handle.get_label())) for handle in handles)
    finish_with_foot(figure, figure_text(foot, 90), title, handles, 2 if longest <= 30 else 1)
    return figure
