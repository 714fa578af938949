"""Each kind of site over the layers: linear edits and vectors on one scale, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from steerscope.analysis.results import Ranking, SiteScore
from steerscope.errors import InputError
from steerscope.reports.figure_style import ACCENT, LINE_LOOKS, MUTED, NULL, PALE, WIDTH, figure_text, styled
from steerscope.reports.ranking.candidates import num_layers
from steerscope.reports.ranking.figure_parts import finish, is_far_from_zero, score_label
from steerscope.reports.vocabulary import axis_scale, ordered_kinds, score_words

# Most of the values decide the scale if they take up less than this part of the range of all.
_CROWDED = 0.5
_MOST = 0.85
_LOOKS = (*LINE_LOOKS[:2], LINE_LOOKS[2])


@styled
def plot_kinds_over_depth(ranking: Ranking) -> Figure:
    """Draw the score of every kind against the layer, a panel per kind, all on one scale.

    Args:
        ranking: The ranking to draw.

    Returns:
        A figure with a line per family of edits in each panel, its intervals as a band, and the margin within which
        candidates are equal to the best. The scale is that of most sites; marks at its lower edge stand for sites
        below it.

    Raises:
        InputError: The ranking has no sites.
    """
    if not ranking.sites:
        raise InputError("the ranking has no sites to draw over depth. Rank a model first.")
    scale, _ = axis_scale(ranking.score)
    kinds = ordered_kinds(site.kind for site in ranking.sites)
    families = [name for name in ("linear", "vector") if any(site.family == name for site in ranking.sites)]
    families += [name for name in dict.fromkeys(site.family for site in ranking.sites) if name not in families]
    families = families[: len(_LOOKS)]
    low, high = _scale([scale * site.score for site in ranking.sites if site.family in families])
    rows = -(-len(kinds) // 2)
    figure = Figure(figsize=(WIDTH, 1.35 * rows + 1.5), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for ax, kind in zip(panels, kinds, strict=False):
        if ranking.equal_margin is not None:
            best = scale * ranking.sites[0].score
            ax.axhspan(best - scale * ranking.equal_margin, best, color=PALE, zorder=0)
        for family, look in zip(families, _LOOKS, strict=False):
            own = sorted(
                (site for site in ranking.sites if (site.kind, site.family) == (kind, family)),
                key=lambda site: site.layer,
            )
            if own:
                _draw(ax, own, scale, low, look)
        ax.set_title(figure_text(kind, 20), fontsize=10, loc="left", pad=3)
        ax.grid(axis="y")
        if low <= 0 <= high:
            ax.axhline(0, color=NULL, linewidth=1.1, linestyle="--", zorder=1)
    for ax in panels[len(kinds) :]:
        ax.remove()
    first = panels[0]
    last = num_layers(ranking) - 1
    first.set_xlim(-0.03 * max(last, 1) - 0.3, last + 0.03 * max(last, 1) + 0.3)
    first.set_ylim(low, high)
    first.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    first.yaxis.set_major_locator(MaxNLocator(nbins=4))
    for place, ax in enumerate(panels[: len(kinds)]):
        ax.tick_params(labelbottom=place >= len(kinds) - 2)
        ax.set_xlabel("layer" if place >= len(kinds) - 2 else "")
    figure.supylabel(score_label(ranking, short=True), fontsize=11)
    finish(figure, ranking, "Each kind over depth", _legend(ranking, families, low, high), 3)
    return figure


def _draw(ax: Axes, own: Sequence[SiteScore], scale: float, low: float, look: tuple[str, str, str]) -> None:
    colour, marker, dash = look
    layers = np.array([site.layer for site in own], dtype=float)
    values = scale * np.array([site.score for site in own])
    ends = scale * np.array([(site.ci_low, site.ci_high) for site in own])
    if len(own) > 1:
        ax.fill_between(layers, ends[:, 0], ends[:, 1], color=colour, alpha=0.18, linewidth=0, zorder=2)
    else:
        ax.plot([layers[0]] * 2, ends[0], color=colour, alpha=0.5, linewidth=1.2, zorder=2)
    size = 3.5 if len(own) <= 40 else 2
    ax.plot(layers, values, color=colour, marker=marker, linestyle=dash, linewidth=1.3, markersize=size, zorder=3)
    below = layers[values < low]
    if len(below):  # a line without points that is not clipped would take all room from the axes
        ax.plot(below, np.full(len(below), low), "v", color=colour, markersize=5, clip_on=False, zorder=4)


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the axis: of all values, or of most where few lie far below these.

    Args:
        values: What is drawn.

    Returns:
        Lower and upper end.
    """
    least, most = min(values), max(values)
    bulk = float(np.quantile(values, 1 - _MOST))
    if most - bulk < _CROWDED * (most - least):
        least = bulk
    elif not is_far_from_zero(least, most):
        least = min(least, 0.0)
    pad = 0.08 * (most - least) or 0.05 * abs(most) or 1.0
    return least - pad, most + pad


def _legend(ranking: Ranking, families: Sequence[str], low: float, high: float) -> list[Artist]:
    scale, _ = axis_scale(ranking.score)
    shown: list[Line2D] = []
    for family, (colour, marker, dash) in zip(families, _LOOKS, strict=False):
        label = f"{figure_text(family, 16)} edits"
        shown.append(Line2D([], [], color=colour, marker=marker, markersize=4, label=label))
        shown[-1].set_linestyle(dash)  # type: ignore[arg-type]
    others: list[Artist] = [Patch(color=ACCENT, alpha=0.18, linewidth=0, label="95% interval")]
    if ranking.equal_margin is not None:
        others.append(Patch(color=PALE, label="within the margin"))
    if any(scale * site.score < low for site in ranking.sites if site.family in families):
        others.append(Line2D([], [], color=MUTED, marker="v", linestyle="", markersize=5, label="below the scale"))
    if low <= 0 <= high:
        name = "no update" if score_words(ranking.score).is_share else "0"
        others.append(Line2D([], [], color=NULL, linestyle="--", linewidth=1.1, label=name))
    return [*shown, *others]
