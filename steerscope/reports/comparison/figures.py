"""Accuracy against the number of trained parameters, with intervals, single seeds and what a constant reaches."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from steerscope.experiments.comparison.groups import Comparison, Entry
from steerscope.reports.figure_style import (
    INK,
    MUTED,
    NULL,
    figure_text,
    finish_with_foot,
    new_figure,
    styled,
)
from steerscope.reports.plain_figures import LINE_LOOKS


@styled
def plot_comparison(comparison: Comparison) -> Figure:
    """Draw a comparison; a method without parameters (the model as it is) is a dotted line with its value.

    Configurations of one size are drawn next to each other, a few percent off their number.

    Returns:
        The figure: accuracy in percent against trained parameters.
    """
    names = list(dict.fromkeys(entry_name(entry) for entry in comparison.entries if entry.parameters))
    columns = 1 if max(map(len, names), default=0) > 22 else 2
    figure, axes = new_figure(3.4 + 0.2 * (len(names) + 2) / columns)
    handles: dict[str, Line2D] = {}
    for entry in comparison.entries:
        if not entry.parameters:
            axes.axhline(100 * entry.accuracy, color=MUTED, linestyle=":", linewidth=1.4)
            handles["0"] = Line2D([], [], color=MUTED, linestyle=":", label="nothing trained")
            continue
        colour, marker, _ = LINE_LOOKS[names.index(entry_name(entry)) % len(LINE_LOOKS)]
        x = entry.parameters * _beside(entry, comparison.entries)
        ends = [[100 * max(entry.accuracy - entry.low, 0)], [100 * max(entry.high - entry.accuracy, 0)]]
        axes.errorbar([x], [100 * entry.accuracy], yerr=ends, color=colour, marker=marker, capsize=3, zorder=3)
        if len(entry.seeds) > 1:
            seeds = [100 * value for value in entry.accuracies]
            axes.plot([x * 1.05] * len(seeds), seeds, linestyle="", marker=".", color=INK, markersize=4, zorder=4)
            handles["seed"] = Line2D([], [], color=INK, marker=".", linestyle="", markersize=4, label="one seed")
        handles[entry_name(entry)] = Line2D(
            [], [], color=colour, marker=marker, linestyle="", label=figure_text(entry_name(entry), 44)
        )
    if "seed" in handles:
        handles["seed"] = handles.pop("seed")  # last among the marks
    axes.axhline(100 * comparison.majority, color=NULL, linestyle="--", linewidth=1.3)
    handles["majority"] = Line2D([], [], color=NULL, linestyle="--", label="always the most frequent answer")
    if names:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(axis="y")
    models = " + ".join(dict.fromkeys(entry.model for entry in comparison.entries))
    foot = f"{figure_text(models, 40)} | {figure_text(comparison.task)} | {comparison.n:,} test questions | Wilson 95%"
    finish_with_foot(figure, foot, "Accuracy and what it costs", list(handles.values()), columns)
    return figure


def _beside(entry: Entry, entries: Sequence[Entry]) -> float:
    """Return a factor near 1 that keeps configurations of one size from hiding each other."""
    same = [one for one in entries if one.parameters == entry.parameters]
    return float(1.09 ** (2 * same.index(entry) - (len(same) - 1)))


def entry_name(entry: Entry) -> str:
    """Return a configuration in a few words: method, site, settings."""
    site = "" if entry.site_words in ("-", entry.method) else f" {entry.site_words}"
    return " ".join((f"{entry.method}{site}", *entry.setting_words))
