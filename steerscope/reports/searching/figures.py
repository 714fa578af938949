"""Figures of a search: what was tested beside plain defaults, and how candidates fell away."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerscope.errors import InputError
from steerscope.experiments.runs.accuracy import wilson_interval
from steerscope.experiments.searching.result import Contender, SearchResult, Tested
from steerscope.reports.figure_style import (
    ACCENT,
    MUTED,
    NULL,
    PAPER,
    figure_text,
    finish_with_foot,
    name_rows,
    new_figure,
    styled,
)
from steerscope.reports.page_folder import Spot, spot_at
from steerscope.reports.vocabulary import clean


def tested_name(one: Tested | Contender) -> str:
    """Return the sites in a few words: names, or how many."""
    number = one.name.count("+") + 1
    return clean(one.name, 40) if number <= 2 else f"{clean(one.name.partition('+')[0], 20)} and {number - 1} more"


def interval_of(accuracy: float, num_test: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of an accuracy.

    Args:
        accuracy: Part of the examples answered right.
        num_test: Test examples.

    Returns:
        Both ends.
    """
    return wilson_interval(min(max(accuracy, 0.0), 1.0), num_test)


@styled
def plot_tested(result: SearchResult) -> Figure:
    """Draw the test accuracy of the chosen edit beside plain defaults, and what needs no training.

    Returns:
        The figure: accuracies in percent with 95% intervals.
    """
    num_test, before = result.before.num_test, result.before
    rows = [result.best, *result.references]
    figure, ax = new_figure(0.45 * len(rows) + 2.1)
    for place, one in enumerate(rows):
        low, high = interval_of(one.accuracy, num_test)
        colour = ACCENT if place == 0 else MUTED
        ax.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2)
        ax.plot(100 * one.accuracy, place, "o" if place == 0 else "s", color=colour, markersize=7,
                markerfacecolor=colour if place == 0 else PAPER)  # fmt: skip
    lines = [
        ("untrained", before.accuracy, "-"),
        ("recalibrated output alone", before.recalibrated_accuracy, ":"),
        ("always one answer", before.majority, "--"),
    ]
    handles = []
    for name, value, dash in lines:
        handles.append(ax.axvline(100 * value, color=NULL, linestyle=dash, linewidth=1.3, label=name))
    names = [figure_text(f"{tested_name(one)}, {one.n_params:,} numbers", 44) for one in rows]
    name_rows(ax, names)
    ax.grid(axis="x")
    ax.set_xlabel("test accuracy (%)", loc="right")
    finish_with_foot(figure, _foot(result), "What the search gave", handles, 2)
    return figure


@styled
def plot_contenders(result: SearchResult) -> Figure:
    """Draw the training loss of everything that was tried against the steps it was trained for.

    Returns:
        The figure; the chosen edit is filled.

    Raises:
        InputError: Everything that was tried diverged.
    """
    shown = [one for one in result.contenders if one.train_loss is not None]
    if not shown:
        raise InputError("everything that the search tried diverged, so there is nothing to draw.")
    figure, ax = new_figure(4.2)
    steps = sorted({one.steps for one in shown})
    for one in shown:
        chosen = one.name == result.best.name and one.learning_rate == result.best.learning_rate
        ax.plot(
            steps.index(one.steps), one.train_loss or 0.0, "o", color=ACCENT if chosen else MUTED,
            markerfacecolor=ACCENT if chosen else PAPER, markersize=9 if chosen else 6, zorder=4 if chosen else 3,
        )  # fmt: skip
    ax.set_xticks(range(len(steps)), [str(number) for number in steps])
    ax.set_xlim(-0.5, len(steps) - 0.5)
    ax.set_xlabel("steps it was trained for, before it was dropped or finished")
    ax.set_ylabel("loss in their second half (nats)")
    ax.grid(axis="y")
    handles = [
        Line2D([], [], color=ACCENT, marker="o", linestyle="", label="chosen"),
        Line2D([], [], color=MUTED, marker="o", markerfacecolor=PAPER, linestyle="", label="an edit at one rate"),
    ]  # fmt: skip
    finish_with_foot(figure, _foot(result), "How the candidates fell away", handles, 2)
    figure.gca().margins(y=0.1)
    return figure


def contender_spots(result: SearchResult, figure: Figure) -> list[Spot]:
    """Return what every mark says.

    Args:
        result: The search.
        figure: What :func:`plot_contenders` drew of it, saved once.

    Returns:
        A spot per edit and rate.
    """
    ax = figure.axes[0]
    low, high = ax.get_ylim()
    shown = [one for one in result.contenders if one.train_loss is not None]
    steps = sorted({one.steps for one in shown})
    found = []
    for one in shown:
        x, y, half = steps.index(one.steps), one.train_loss or 0.0, 0.012 * (high - low)
        held = "" if one.selection_loss is None else f", {one.selection_loss:.3f} on selection examples"
        text = f"{tested_name(one)}, rate {one.learning_rate:.3g}: loss {y:.3f} after {one.steps} steps{held}"
        found.append(spot_at(ax, (x - 0.12, y - half), (x + 0.12, y + half), text))
    return found


def _foot(result: SearchResult) -> str:
    return figure_text(f"{result.model.name} | {result.task} | {result.before.num_test} test examples | Wilson 95%", 90)
