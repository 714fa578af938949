"""The figures of a ranking: every ``plot_*`` takes a :class:`Ranking` and returns a matplotlib ``Figure``.

Each raises :class:`InputError` where the ranking does not hold what it draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from steerscope.analysis.results import Ranking, SiteScore
from steerscope.errors import InputError
from steerscope.reports.figure_style import ACCENT, INK, MUTED, NULL, figure_text, new_figure, styled
from steerscope.reports.ranking.candidates import (
    Candidate,
    agreements,
    candidates,
    main_family,
    num_layers,
    sites_of_family,
)
from steerscope.reports.ranking.curves import plot_greedy_growth, plot_kinds_over_depth, plot_learning_curves
from steerscope.reports.ranking.figure_parts import finish, score_label
from steerscope.reports.vocabulary import axis_scale, ordered_kinds, score_words

__all__ = [
    "plot_greedy_growth",
    "plot_heat_map",
    "plot_kinds_over_depth",
    "plot_learning_curves",
    "plot_other_scores",
    "plot_ranking",
]

# Deeper maps have cells too low for a number; marks take over.
_MOST_NUMBERED_LAYERS = 48


@styled
def plot_heat_map(ranking: Ranking, family: str | None = None) -> Figure:
    """Draw one family's scores as a map of layers (first at the bottom) and kinds.

    Args:
        ranking: The ranking to draw.
        family: Family of edits; the ranking's main family by default.

    Returns:
        A figure; cells carry numbers where they are high enough, frames mark the best and what ties with it.

    Raises:
        InputError: The ranking has no site of that family.
    """
    family = family or main_family(ranking)
    sites = sites_of_family(ranking, family)
    if not sites:
        raise InputError(f"the ranking has no sites of family {family!r} to map. Rank that family first.")
    layers, kinds = num_layers(ranking), ordered_kinds(site.kind for site in sites)
    scale, _ = axis_scale(ranking.score)
    values = np.full((layers, len(kinds)), np.nan)
    for site in sites:
        values[site.layer, kinds.index(site.kind)] = scale * site.score
    cell = 0.23 if layers <= _MOST_NUMBERED_LAYERS else 0.1
    figure, ax = new_figure(max(0.8, cell * layers) + 3.0)
    norm, extend = _norm(values)
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(values), cmap="cividis", norm=norm, edgecolors="white", linewidth=0.8, zorder=2
    )
    ax.add_patch(
        Rectangle((0, 0), len(kinds), layers, facecolor="#f1f2f4", edgecolor="#b9c0ca", hatch="////", zorder=1)
    )
    _mark_cells(ax, values, norm, sites, kinds)
    step = 1 if layers <= _MOST_NUMBERED_LAYERS else 5
    ax.set_yticks(np.arange(0, layers, step) + 0.5, [str(layer) for layer in range(0, layers, step)])
    ax.set_xticks(np.arange(len(kinds)) + 0.5, [figure_text(kind, 16) for kind in kinds], rotation=35, ha="left")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("layer (0 reads the embeddings)" if layers > 5 else "layer")
    bar = figure.colorbar(mesh, ax=ax, location="bottom", shrink=0.9, aspect=30, pad=0.02, extend=extend)
    bar.set_label(score_label(ranking))
    bar.outline.set_visible(False)
    finish(figure, ranking, f"Every site, {figure_text(family, 16)} edits", _cell_marks(layers))
    return figure


def _cell_marks(layers: int) -> list[Artist]:
    """Return the legend of the map: frames where cells carry numbers, marks where they are too low for that."""
    absent = Patch(facecolor="#f1f2f4", edgecolor="#b9c0ca", hatch="////", label="no such site")
    best, tie = "highest", "ties with the best"
    if layers <= _MOST_NUMBERED_LAYERS:
        return [
            Patch(facecolor="none", edgecolor=INK, linewidth=2.2, label=best),
            Patch(facecolor="none", edgecolor=INK, linewidth=1.1, linestyle=":", label=tie),
            absent,
        ]
    return [
        Line2D([], [], color=INK, marker="*", markersize=9, linestyle="", label=best),
        Line2D([], [], color=INK, marker=".", markersize=9, linestyle="", label=tie),
        absent,
    ]


def _norm(values: np.ndarray) -> tuple[Normalize, str]:
    """Return the colour scale: it holds zero, and no single very negative site may eat it."""
    high = max(float(np.nanmax(values)), 0.0)
    lowest = min(float(np.nanmin(values)), 0.0)
    low = max(lowest, -high) if high > 0 else lowest
    if low == high:
        high = low + 1.0
    return Normalize(low, high, clip=True), "min" if low > lowest else "neither"


def _mark_cells(ax: Axes, values: np.ndarray, norm: Normalize, sites: list[SiteScore], kinds: list[str]) -> None:
    """Print each cell's number where there is room, and frame the best and what ties with it."""
    numbered = len(values) <= _MOST_NUMBERED_LAYERS
    decimals = 0 if np.nanmax(np.abs(values)) >= 9.5 else 1
    for index, site in enumerate(sites):
        column = kinds.index(site.kind)
        value = values[site.layer, column]
        ink = "white" if norm(value) < 0.55 else "black"
        if numbered:
            text = f"{value:.{decimals}f}"
            # A share of -0.3 must not print as -0: the sign is the message.
            text = f"{value:.1f}" if text == "-0" else text
            style: dict[str, Any] = {"color": ink, "fontsize": 9, "ha": "center", "va": "center", "zorder": 4}
            weight = "bold" if index == 0 else "normal"
            ax.text(column + 0.5, site.layer + 0.48, text, weight=weight, **style)
        elif index == 0 or site.ties_with_best:
            ax.plot(column + 0.5, site.layer + 0.5, "*" if index == 0 else ".", color=ink, zorder=4)
        if numbered and (index == 0 or site.ties_with_best):
            frame = Rectangle(
                (column + 0.04, site.layer + 0.07),
                0.92,
                0.86,
                facecolor="none",
                edgecolor=ink,
                zorder=5 - index / 1e6,
            )
            frame.set_linewidth(2.2 if index == 0 else 1.1)
            frame.set_linestyle("-" if index == 0 else ":")
            ax.add_patch(frame)


@styled
def plot_ranking(ranking: Ranking, limit: int = 20) -> Figure:
    """Draw the best candidates with their 95% intervals; shapes tell the best, its ties and the rest.

    Args:
        ranking: The ranking to draw.
        limit: Number of candidates, best first.

    Returns:
        A figure with one candidate per row and a line at zero.

    Raises:
        InputError: The ranking has no sites.
    """
    rows = candidates(ranking)[:limit]
    if not rows:
        raise InputError("the ranking has no sites to draw. Rank a model first.")
    scale, _ = axis_scale(ranking.score)
    figure, ax = new_figure(0.3 * len(rows) + 1.9)
    families = {row.site.family for row in rows}
    odd = [len(families) > 1 and row.site.family != main_family(ranking) for row in rows]
    for place, row in enumerate(rows):
        marker, face, size = _row_shape(row)
        site = row.site
        ax.plot([scale * site.ci_low, scale * site.ci_high], [place, place], color=ACCENT, linewidth=1.6)
        ax.plot(
            scale * site.score,
            place,
            marker,
            color=ACCENT,
            markerfacecolor=face,
            markersize=size,
            clip_on=False,
        )
    ax.set_yticks(range(len(rows)), [_row_label(row, named) for row, named in zip(rows, odd, strict=True)])
    ax.tick_params(axis="y", length=0)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontsize(8.5 if row.is_merged else 10)
        label.set_linespacing(1.0)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.axvline(0, color=NULL, linewidth=1.2, linestyle="--")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(score_label(ranking))
    shapes = [
        Line2D([], [], marker="*", color=ACCENT, markersize=12, linestyle="", label="highest"),
        Line2D([], [], marker="o", color=ACCENT, markersize=7, linestyle="", label="ties with the best"),
        Line2D([], [], marker="d", color=ACCENT, markerfacecolor="white", linestyle="", label="worse"),
        Line2D(
            [],
            [],
            color=NULL,
            linestyle="--",
            label="no update" if score_words(ranking.score).is_share else "0",
        ),
    ]
    title = "The candidate" if len(rows) == 1 else f"The best {len(rows)} candidates"
    usual = families.pop() if len(families) == 1 else main_family(ranking)
    unless = " unless named" if families else ""
    finish(figure, ranking, f"{title}, {figure_text(usual, 12)}{unless}", shapes, 4)
    return figure


def _row_shape(row: Candidate) -> tuple[str, str, float]:
    """Return marker, fill and size of a candidate."""
    if row.rank == 1:
        return "*", ACCENT, 13
    return ("o", ACCENT, 7) if row.site.ties_with_best else ("d", "white", 7)


def _row_label(row: Candidate, name_family: bool) -> str:
    """Return a candidate's name; the names of one vector at several kinds take two lines."""
    if not row.is_merged:
        name = f"{row.site.layer}.{figure_text(row.kinds[0], 20)}"
        return f"{name} ({figure_text(row.site.family, 10)})" if name_family else name
    first, second, *others = (figure_text(kind, 16) for kind in row.kinds)
    rest = "".join(f"= {kind} " for kind in others)
    return f"{row.site.layer}.{first} = {second}\n{rest}(one vector)"


@styled
def plot_other_scores(ranking: Ranking) -> Figure:
    """Draw what the other scores say: Spearman correlation with the default, and their own best site.

    The band is where 95% of random orders of as many sites fall.

    Args:
        ranking: The ranking to draw.

    Returns:
        A figure with one score per row, most agreeing first.

    Raises:
        InputError: No other score, or fewer than three sites to correlate over.
    """
    found = agreements(ranking)
    sites = sites_of_family(ranking, main_family(ranking))
    if not found or len(sites) < 3:
        raise InputError("no other scores over three or more sites to compare. Rank with more scores or sites.")
    scale, _ = axis_scale(ranking.score)
    figure, ax = new_figure(0.42 * len(found) + 2.0)
    chance = min(1.96 / np.sqrt(len(sites) - 1), 1.0)
    ax.axvspan(-chance, chance, color="#eceef1", zorder=0)
    ax.axvline(0, color=NULL, linewidth=1.2, linestyle="--")
    for place, other in enumerate(found):
        if other.spearman is not None:
            ax.plot([0, other.spearman], [place, place], color=ACCENT, linewidth=2)
            ax.plot(other.spearman, place, "o", color=ACCENT, markersize=7, clip_on=False)
        else:
            ax.text(0.04, place, "same for all", va="center", fontsize=9, color=MUTED)
        pick = f"{len(other.best):,} sites tie"
        if len(other.best) == 1:
            best = other.best[0]
            pick = f"{figure_text(best.name, 18)}: {scale * best.score:.{1 if scale > 1 else 3}f}"
        ax.annotate(pick, (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
    ax.annotate(
        "its best site:\nwhat that scores" + axis_scale(ranking.score)[1],
        (1.03, 1.02), xycoords="axes fraction", va="bottom", fontsize=9, color=MUTED,
    )  # fmt: skip
    ax.set_yticks(range(len(found)), [figure_text(score_words(other.name).label, 26) for other in found])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlim(-1, 1)
    ax.set_xticks([-1, 0, 1])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("Spearman correlation\nwith the default score")
    band = [Patch(color="#eceef1", label=f"95% of random orders of {len(sites):,} sites")]
    finish(figure, ranking, "What the other scores say", band)
    return figure
