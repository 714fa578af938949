"""What the figures of a ranking share: the score's label, the line of no update, title and foot."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from steerscope.analysis.results import Ranking
from steerscope.reports.figure_style import NULL, figure_text, finish_with_foot
from steerscope.reports.ranking.candidates import prompts_learned_from
from steerscope.reports.vocabulary import axis_scale, count, score_words


def score_label(ranking: Ranking, *, short: bool = False) -> str:
    """Return the axis label of the ranking's score, with its unit; ``short`` leaves out the prompts.

    Args:
        ranking: The ranking.
        short: Leave out how many prompts the share is learned from.

    Returns:
        A label for an axis.
    """
    words, (_, unit) = score_words(ranking.score), axis_scale(ranking.score)
    if not words.is_share:
        return figure_text(words.label)
    prompts = "" if short else f" from {count(prompts_learned_from(ranking), 'prompt')}"
    return f"share learned{prompts}{unit}"


def finish(figure: Figure, ranking: Ranking, title: str, handles: Sequence[Artist] = (), columns: int = 3) -> None:
    """Add title, legend and foot, and keep the three apart from the axes.

    The foot names model, task, prompts and seed, so that a figure on its own says what it is of.

    Args:
        figure: The figure, its axes drawn.
        ranking: What it is of.
        title: A few words.
        handles: Entries of the legend.
        columns: Entries per row of the legend.
    """
    model = figure_text(ranking.model.name, 28)
    task = figure_text(ranking.task, 28)
    foot = f"{model} | {task} | {count(ranking.n_examples, 'prompt')} | seed {ranking.seed}"
    finish_with_foot(figure, foot, title, handles, columns)


def finish_columns(
    figure: Figure, ranking: Ranking, title: str, left: Sequence[Artist], right: Sequence[Artist]
) -> None:
    """Finish a figure with a legend of two columns that mean different things.

    Args:
        figure: The figure, its axes drawn.
        ranking: What it is of.
        title: A few words.
        left: Entries of the first column.
        right: Entries of the second.
    """
    # Legends fill column by column: blanks keep each entry in its own.
    rows = max(len(left), len(right))
    blanks = [[Line2D([], [], linestyle="", label=" ")] * (rows - len(column)) for column in (left, right)]
    finish(figure, ranking, title, [*left, *blanks[0], *right, *blanks[1]], 2)


def short_number(number: float, _position: int | None = None) -> str:
    """Write a parameter count in four characters or so: ``512``, ``9.2k``, ``1.4M``.

    Args:
        number: How many.
        _position: Of the tick, which matplotlib gives too.

    Returns:
        The label of a tick.
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def is_far_from_zero(low: float, high: float) -> bool:
    """Whether values from ``low`` to ``high`` are so far from zero that an axis which holds it would flatten them.

    Args:
        low: Smallest value.
        high: Largest value.

    Returns:
        Whether the distance to zero exceeds the range; not for values below zero.

    Example:
        >>> is_far_from_zero(10.0, 11.0), is_far_from_zero(0.1, 1.0)
        (True, False)
    """
    return low > high - low


def null_line(ax: Axes, ranking: Ranking) -> None:
    """Draw zero, what predicting no update would score, as a named line, unless all that is drawn is far from it.

    Args:
        ax: The axes, with the score on the vertical one.
        ranking: The ranking.
    """
    if is_far_from_zero(*ax.dataLim.intervaly):
        return
    ax.axhline(0, color=NULL, linewidth=1.2, linestyle="--")
    if score_words(ranking.score).is_share:
        ax.annotate(
            "no update", (0.995, 0), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", fontsize=9, color=NULL,
        )  # fmt: skip


def over_parameters(ax: Axes, ranking: Ranking, numbers: Sequence[int]) -> None:
    """Give a figure of scores over trained parameters its axes.

    Args:
        ax: The axes, drawn.
        ranking: Whose scores.
        numbers: Of parameters, of everything that is drawn.
    """
    ax.set_xscale("log")
    if max(numbers) < 30 * min(numbers):
        # Powers of ten alone would leave a short axis with one label or none.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(short_number))
    ax.xaxis.set_minor_formatter(NullFormatter())
    null_line(ax, ranking)
    ax.margins(x=0.12, y=0.12)
    ax.grid(axis="y")
    ax.set_xlabel("trained parameters (log scale)")
    ax.set_ylabel(score_label(ranking, short=True))
