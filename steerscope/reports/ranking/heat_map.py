"""The map of all sites: how far below the best each one is, and where that is noise."""

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
from steerscope.analysis.scoring.standing import Standing
from steerscope.errors import InputError
from steerscope.reports.figure_style import INK, PAPER, figure_text, new_figure, styled
from steerscope.reports.page_folder import Spot, spot_at
from steerscope.reports.ranking.candidates import num_layers, sites_of_family, standing
from steerscope.reports.ranking.figure_parts import finish
from steerscope.reports.vocabulary import (
    axis_scale,
    clean,
    format_difference,
    format_interval,
    format_score,
    ordered_kinds,
    score_words,
)

# Deeper maps have cells too low for a number; marks take over.
_MOST_NUMBERED_LAYERS = 48
# Families in the order in which they stand side by side; others follow.
_ORDER = ("linear", "vector")
# Lighter cells stay light on dark pages, and so these stay dark.
_CROSSES = "#59626f"
_ABSENT: dict[str, Any] = {"facecolor": "#f1f2f4", "edgecolor": "#b9c0ca"}


@styled
def plot_heat_map(ranking: Ranking, family: str | None = None) -> Figure:
    """Draw how far below the best every site is, as maps of layers (first at the bottom) and kinds.

    Args:
        ranking: The ranking to draw.
        family: Family of edits; without it all of them, side by side on one scale.

    Returns:
        A figure; cells carry numbers where they are high enough, frames mark sites equal to the best, and hatching
        those that the prompts cannot place.

    Raises:
        InputError: The ranking has no site of that family.
    """
    there, families = {site.family for site in ranking.sites}, _families(ranking, family)
    if not families or families[0] not in there:
        raise InputError(f"the ranking has no sites of family {family!r} to map. Rank that family first.")
    layers = num_layers(ranking)
    scale, unit = axis_scale(ranking.score)
    best = ranking.sites[0].score
    below = {
        name: [(site, scale * (best - site.score)) for site in sites_of_family(ranking, name)] for name in families
    }
    norm, extend = _norm(
        [value for name in families for _, value in below[name]], scale * (ranking.equal_margin or 0.0)
    )
    numbered = layers <= _MOST_NUMBERED_LAYERS
    figure, first = new_figure(max(0.8, (0.23 if numbered else 0.1) * layers) + 3.2)
    axes = [first]
    if len(families) > 1:
        first.remove()
        axes = list(figure.subplots(1, len(families), sharey=True))
    mesh = None
    for ax, name in zip(axes, families, strict=True):
        kinds = ordered_kinds(site.kind for site, _ in below[name])
        values = np.full((layers, len(kinds)), np.nan)
        for site, value in below[name]:
            values[site.layer, kinds.index(site.kind)] = value
        mesh = ax.pcolormesh(
            np.ma.masked_invalid(values), cmap="cividis_r", norm=norm, edgecolors=PAPER, linewidth=0.8, zorder=2
        )
        ax.add_patch(Rectangle((0, 0), len(kinds), layers, hatch="////", zorder=1, **_ABSENT))
        _mark_cells(ax, ranking, below[name], norm, kinds, 9 if len(families) == 1 else 7.5)
        step = 1 if numbered else 5
        ax.set_yticks(np.arange(0, layers, step) + 0.5, [str(layer) for layer in range(0, layers, step)])
        ax.set_xticks(np.arange(len(kinds)) + 0.5, [figure_text(kind, 16) for kind in kinds], rotation=90)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if len(families) > 1:
            ax.set_xlabel(f"{figure_text(name, 16)} edits")
    axes[0].set_ylabel("layer (0 reads the embeddings)" if layers > 5 else "layer")
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.9, aspect=30, pad=0.02, extend=extend)
    points = "percentage points below the best" if unit else f"{score_words(ranking.score).label}: below the best by"
    bar.set_label(figure_text(points, 60))
    bar.outline.set_visible(False)
    title = "Every site" if len(families) > 1 else f"Every site, {figure_text(families[0], 16)} edits"
    finish(figure, ranking, title, _cell_marks(numbered))
    return figure


def heat_map_spots(ranking: Ranking, figure: Figure) -> list[Spot]:
    """Return what every cell of the map says.

    Args:
        ranking: The ranking.
        figure: What :func:`plot_heat_map` drew of it, saved once.

    Returns:
        A spot per site and family: score, interval, difference to the best, standing.
    """
    found, best = [], ranking.sites[0].score
    for ax, family in zip(figure.axes, _families(ranking, None), strict=False):
        sites = sites_of_family(ranking, family)
        kinds = ordered_kinds(site.kind for site in sites)
        for site in sorted(sites, key=lambda site: (site.layer, kinds.index(site.kind))):
            column = kinds.index(site.kind)
            interval = format_interval(site.ci_low, site.ci_high, ranking.score)
            words = f"{site.name} ({clean(family, 16)}): {format_score(site.score, ranking.score)} ({interval})"
            if site is not ranking.sites[0]:
                words += f", {format_difference(best - site.score, ranking.score)} below the best"
            words += f", {standing(ranking, site).value}; {site.n_params:,} parameters"
            found.append(spot_at(ax, (column, site.layer), (column + 1, site.layer + 1), words))
    return found


def _families(ranking: Ranking, family: str | None) -> list[str]:
    """Return the families that have a map, from left to right."""
    there = list(dict.fromkeys(site.family for site in ranking.sites))
    return [family] if family else [name for name in _ORDER if name in there] or there[:1]


def _cell_marks(numbered: bool) -> list[Artist]:
    """Return the legend: frames where cells carry numbers, marks where they are too low for that."""
    absent = Patch(hatch="////", label="no such site", **_ABSENT)
    noise = Patch(facecolor="white", edgecolor=_CROSSES, hatch="xxx", label="undetermined")
    if numbered:
        return [Patch(facecolor="none", edgecolor=INK, linewidth=1.6, label="equal to the best"), noise, absent]
    return [Line2D([], [], color=INK, marker=".", markersize=9, linestyle="", label="equal to the best"), noise, absent]


def _norm(below: list[float], margin: float) -> tuple[Normalize, str]:
    """Return the colour scale: from the best to where four fifths of the sites are, at least two margins."""
    most = max(below)
    high = min(most, max(float(np.quantile(below, 0.8)), 2 * margin))
    if high <= 0:
        high = 1.0
    return Normalize(0.0, high, clip=True), "max" if most > high else "neither"


def _number(value: float, decimals: int) -> str:
    if decimals < 2:
        return f"{value:.{decimals}f}"
    return f"{value:.2g}".replace("0.", ".") if value else "0"


def _mark_cells(
    ax: Axes, ranking: Ranking, below: list[tuple[SiteScore, float]], norm: Normalize, kinds: list[str], size: float
) -> None:
    """Print each cell's number where there is room, frame the equal ones and hatch the undetermined."""
    numbered = num_layers(ranking) <= _MOST_NUMBERED_LAYERS
    largest = max(value for _, value in below)
    decimals = 0 if largest >= 9.5 else 1 if largest >= 0.95 else 2
    for site, value in below:
        column, found = kinds.index(site.kind), standing(ranking, site)
        ink = "white" if norm(value) > 0.5 else "black"
        if found is Standing.UNDETERMINED:
            # Lines, not dots: a hatch of circles alone is a quarter of a megabyte of SVG.
            ax.add_patch(
                Rectangle(
                    (column, site.layer), 1, 1, facecolor="white", edgecolor=_CROSSES, alpha=0.55, hatch="xxx",
                    linewidth=0, zorder=3,
                )
            )  # fmt: skip
            ink = "black"
        if not numbered:
            if found is Standing.EQUAL:
                ax.plot(column + 0.5, site.layer + 0.5, ".", color=ink, zorder=4)
            continue
        ax.text(
            column + 0.5, site.layer + 0.48, _number(value, decimals), color=ink, fontsize=size, ha="center",
            va="center", zorder=4,
        )  # fmt: skip
        if found is Standing.EQUAL:
            frame = Rectangle((column + 0.05, site.layer + 0.08), 0.9, 0.84, facecolor="none", edgecolor=ink, zorder=5)
            frame.set_linewidth(1.1)
            ax.add_patch(frame)
