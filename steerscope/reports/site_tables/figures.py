"""Figures of a site table: losses by layer and kind, predicted against trained, regret against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerscope.errors import InputError
from steerscope.experiments.agreement.correlations import finite_losses
from steerscope.experiments.site_tables.common import common_outcomes, score_array
from steerscope.experiments.site_tables.search_curves import SearchCurve
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.reports.figure_style import (
    GRID,
    LINE_LOOKS,
    NULL,
    draw_line,
    figure_text,
    finish_with_foot,
    look,
    new_figure,
    styled,
)
from steerscope.reports.page_folder import Spot, spot_at
from steerscope.reports.vocabulary import ordered_kinds, score_words


@styled
def plot_losses(table: SiteTable) -> Figure:
    """Draw the test loss that training reached, by layer, one line per kind; bars are the range over seeds.

    Returns:
        The figure.

    Raises:
        InputError: Too few tested sites.
    """
    common = common_outcomes(table)
    losses = finite_losses(common.losses)
    figure, ax = new_figure(4.4)
    handles = []
    kinds = [one.site.kind.value for one in common.outcomes]
    for kind in ordered_kinds(kinds):
        places = [i for i, own in enumerate(kinds) if own == kind]
        x, rows = common.layers[places], losses[places]
        handles.append(draw_line(ax, x, rows.mean(1), look(kind), figure_text(kind, 16)))
        ax.vlines(x, rows.min(1), rows.max(1), color=look(kind)[0], linewidth=0.8)
    for name, value in (("untrained", table.base.loss), ("recalibrated", table.base.recalibrated_loss)):
        line = ax.axhline(value, color=NULL, linestyle="--" if name == "untrained" else ":", linewidth=1.3, label=name)
        handles.append(line)
    ax.set_xlabel("layer")
    ax.set_ylabel("test loss after training (nats)")
    ax.grid(axis="y", color=GRID)
    finish_with_foot(figure, _foot(table), "What training at each site came to", handles, 3)
    return figure


def loss_spots(table: SiteTable, figure: Figure) -> list[Spot]:
    """Return what every point of :func:`plot_losses` says.

    Args:
        table: The table.
        figure: What was drawn of it, saved once.

    Returns:
        A spot per site.
    """
    ax, common = figure.axes[0], common_outcomes(table)
    low, high = ax.get_ylim()
    losses = finite_losses(common.losses)
    return [
        spot_at(
            ax, (layer - 0.3, own.mean() - 0.02 * (high - low)), (layer + 0.3, own.mean() + 0.02 * (high - low)),
            f"{one.site}: loss {own.mean():.3f} ({own.min():.3f} to {own.max():.3f} over seeds), accuracy "
            f"{one.accuracy:.1%}, rate {one.learning_rate:.3g}",
        )
        for one, layer, own in zip(common.outcomes, common.layers, losses, strict=True)
    ]  # fmt: skip


@styled
def plot_foreseen(table: SiteTable, name: str, scores: Mapping[str, float] | None = None) -> Figure:
    """Draw the test loss after training against a score, one mark per site.

    Args:
        table: The table.
        name: The score's name.
        scores: Its values by site; without them those that the table holds.

    Returns:
        The figure.

    Raises:
        InputError: The table has no score of that name, or a site has no value.
    """
    if scores is None and name not in table.scores:
        raise InputError(
            f"the table of {table.name} has no score {name!r}; it has {', '.join(sorted(table.scores)) or 'none'}."
        )
    common = common_outcomes(table)
    values = score_array(name, table.scores[name] if scores is None else scores, common.sites)
    losses = finite_losses(common.losses)
    figure, ax = new_figure(4.4)
    for one, value, own in zip(common.outcomes, values, losses, strict=True):
        colour, marker, _ = look(one.site.kind.value)
        ax.plot([value] * 2, [own.min(), own.max()], color=colour, linewidth=0.8)
        ax.plot(value, own.mean(), color=colour, marker=marker, markersize=5.5, linestyle="")
    ax.set_xlabel(figure_text(score_words(name).label))
    ax.set_ylabel("test loss after training (nats)")
    ax.grid(color=GRID)
    kinds = ordered_kinds(one.site.kind.value for one in common.outcomes)
    shapes = [
        Line2D([], [], color=look(kind)[0], marker=look(kind)[1], linestyle="", label=figure_text(kind, 16))
        for kind in kinds
    ]
    finish_with_foot(figure, _foot(table), "Predicted against trained", shapes, 4)
    return figure


@styled
def plot_search(table: SiteTable, curves: Sequence[SearchCurve]) -> Figure:
    """Draw the regret of searches against their cost; bars are 95% intervals over seeds.

    Args:
        table: What they were replayed from.
        curves: At most seven of them.

    Returns:
        The figure.

    Raises:
        InputError: No curve, or more than there are looks.
    """
    if not 0 < len(curves) <= len(LINE_LOOKS):
        raise InputError(f"got {len(curves)} curves to draw; expected 1 to {len(LINE_LOOKS)}.")
    figure, ax = new_figure(4.4)
    handles = []
    for curve, style in zip(curves, LINE_LOOKS, strict=False):
        x = np.array([point.cost for point in curve.points])
        y = [point.loss for point in curve.points]
        handles.append(draw_line(ax, x, [one.value for one in y], style, figure_text(curve.name, 40)))
        ax.vlines(x, [one.low for one in y], [one.high for one in y], color=style[0], linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xlabel("cost (1: training every site once)")
    ax.set_ylabel("regret (nats)")
    ax.grid(color=GRID)
    longest = max(len(curve.name) for curve in curves)
    finish_with_foot(figure, _foot(table), "What a search loses, and costs", handles, 2 if longest < 30 else 1)
    return figure


def _foot(table: SiteTable) -> str:
    return figure_text(f"{table.name} | {len(table.seeds)} seeds | {table.steps} steps", 90)
