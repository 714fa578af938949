"""How every figure looks and is saved: readable on a phone and without colour, the same bytes every time.

Figures are 5.2 inches wide and set in 10 to 12 points, so that the text is still about ten pixels high on a
screen of 360. Kinds differ in marker and line as well as colour.
"""

from __future__ import annotations

import contextlib
import functools
import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from steerscope.reports.svg import finished_svg
from steerscope.reports.vocabulary import clean

WIDTH = 5.2
# Not pure white: dark pages turn paper dark, and leave the white text in cells as it is (svg.py).
PAPER = "#fffffe"
INK = "#1d2430"
MUTED = "#5b6472"
GRID = "#d9dde3"
NULL = "#8a1c1c"
ACCENT = "#1f4e8c"
PALE = "#e8eef6"

# One look per line or group of a figure, in order: colour, marker, dash.
LINE_LOOKS = (
    (ACCENT, "o", "-"),
    ("#b35900", "^", "--"),
    ("#007a5a", "D", "-."),
    ("#a8518a", "s", ":"),
    ("#3b3b3b", "v", "--"),
    ("#0072b2", "P", "-"),
    ("#b8860b", "<", "-."),
)

_RC: dict[str, Any] = {
    # The font that matplotlib brings along: figures look alike on every machine.
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.labelsize": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "hatch.linewidth": 0.7,
    # Text as paths needs no font on the reader's side; the salt makes the ids of clip paths repeatable.
    "svg.fonttype": "path",
    "svg.hashsalt": "steerscope",
}

# Okabe and Ito's colours, darkened where white paper would swallow them.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "resid_pre": ("#5b6472", "X", "-"),
    "attn_heads": ("#b35900", "^", "--"),
    "attn_out": ("#0072b2", "v", ":"),
    "resid_mid": ("#007a5a", "D", "-."),
    "mlp_in": ("#a8518a", "P", "--"),
    "mlp_hidden": ("#3b3b3b", "s", ":"),
    "mlp_out": ("#b8860b", "<", "-."),
    "resid_post": ("#1f4e8c", "o", "-"),
}

P = ParamSpec("P")


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Draw with the project's style whatever the user's own settings are, and give those back."""
    own = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context():
        settings: Any = matplotlib.rcParams
        settings.update(own)
        settings.update(_RC)
        yield


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a plotting function under the project's style, without touching the caller's settings.

    Returns:
        A function with the same arguments.
    """

    @functools.wraps(plot)
    def under_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return plot(*args, **kwargs)

    return under_style


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the common width, outside pyplot's global list of figures."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def name_rows(ax: Axes, names: Sequence[str], room: float = 0.6) -> None:
    """Name rows on the vertical axis, the first one on top, without a line beside the names.

    Args:
        ax: The axes; row i is at height i.
        names: One per row.
        room: Above the first row and below the last.
    """
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 1 + room, -room)
    ax.spines["left"].set_visible(False)


def look(kind: str) -> tuple[str, str, str]:
    """Return colour, marker and line style of a kind; unknown kinds share one look."""
    return _LOOKS.get(kind, ("#777777", "*", "-"))


def figure_text(text: object, limit: int = 40, *, lines_of: int | None = None) -> str:
    """Return text that the bundled font can draw: ASCII, limited, on one line unless told otherwise.

    Args:
        text: Anything that can be printed.
        limit: Most characters.
        lines_of: Most characters of a line, where there may be several.

    Returns:
        The text; other characters than ASCII are question marks.
    """
    plain = clean(text, limit).encode("ascii", "replace").decode("ascii")
    return plain if lines_of is None else textwrap.fill(plain, lines_of)


def finish_with_foot(figure: Figure, foot: str, title: str, handles: Sequence[Artist] = (), columns: int = 3) -> None:
    """Add title, legend and foot, and keep the three apart from the axes.

    The foot is one line that says what the figure is of, so that it can stand on its own.

    Args:
        figure: The figure, its axes drawn.
        foot: What the figure is of.
        title: A few words.
        handles: Entries of the legend.
        columns: Entries per row of the legend.
    """
    height = figure.get_figheight()
    rows = -(-len(handles) // columns)
    left, foot_top = 0.06 / WIDTH, 0.26 / height
    below = foot_top + rows * 0.205 / height
    figure.suptitle(title, x=left, ha="left", fontsize=12.5, fontweight="bold")
    figure.text(left, 0.07 / height, foot, fontsize=8, color=MUTED, va="bottom")
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        # A rectangle given as (left, bottom, width, height): the strip below it belongs to legend and foot.
        engine.set(rect=(0, below, 1, 1 - below))
    if handles:
        figure.legend(
            handles=list(handles),
            loc="lower left",
            bbox_to_anchor=(left / 2, foot_top),
            ncols=columns,
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.2,
            handletextpad=0.6,
            labelspacing=0.4,
        )


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """Return a figure as ``svg`` or ``png`` (150 dpi), the same bytes for the same figure every time.

    An SVG has a dark variant in it (:mod:`~steerscope.reports.svg`); a PNG is light.

    Args:
        figure: The figure.
        kind: ``svg`` or ``png``.

    Returns:
        The content of a file.
    """
    buffer = io.BytesIO()
    # Date and version would make two equal reports differ.
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with _style():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return finished_svg(buffer.getvalue()) if kind == "svg" else buffer.getvalue()


def draw_line(ax: Axes, x: Any, y: Any, look: tuple[str, str, str], label: str) -> Line2D:
    """Draw one line in a look of :data:`LINE_LOOKS`.

    Args:
        ax: The axes.
        x: Values on the horizontal axis.
        y: Values on the vertical axis, as many.
        look: Colour, marker and dashes.
        label: Name in the legend.

    Returns:
        The line, for the legend.
    """
    colour, marker, dash = look
    (drawn,) = ax.plot(x, y, color=colour, marker=marker, linestyle=dash, markersize=4.5, linewidth=1.4, label=label)
    return drawn


def log_scale(ax: Axes, which: str, base: int = 10) -> None:
    """Make the axis ``"x"`` or ``"y"`` logarithmic with ticks in plain numbers (the style draws no powers).

    Args:
        ax: The axes.
        which: ``x`` or ``y``.
        base: Base of the logarithm, where the ticks stand.
    """
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=base)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
