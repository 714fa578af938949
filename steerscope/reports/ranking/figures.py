"""The figures of a ranking: every ``plot_*`` takes a :class:`Ranking` and returns a matplotlib ``Figure``.

Each raises :class:`InputError` where the ranking does not hold what it draws.
"""

from __future__ import annotations

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.standing import Standing
from steerscope.errors import InputError
from steerscope.reports.figure_style import ACCENT, MUTED, NULL, PALE, PAPER, figure_text, name_rows, new_figure, styled
from steerscope.reports.ranking.candidates import (
    Candidate,
    agreements,
    candidates,
    main_family,
    sites_of_family,
    standing,
)
from steerscope.reports.ranking.cost import plot_gain_and_cost
from steerscope.reports.ranking.curves import plot_greedy_growth, plot_learning_curves
from steerscope.reports.ranking.depth import plot_kinds_over_depth
from steerscope.reports.ranking.figure_parts import finish, is_far_from_zero, score_label
from steerscope.reports.ranking.heat_map import plot_heat_map
from steerscope.reports.vocabulary import axis_scale, score_words

__all__ = [
    "plot_gain_and_cost",
    "plot_greedy_growth",
    "plot_heat_map",
    "plot_kinds_over_depth",
    "plot_learning_curves",
    "plot_other_scores",
    "plot_ranking",
]


@styled
def plot_ranking(ranking: Ranking, limit: int = 20) -> Figure:
    """Draw the best candidates with their 95% intervals; shapes tell equal, undetermined and worse ones.

    Args:
        ranking: The ranking to draw.
        limit: Number of candidates, best first.

    Returns:
        A figure with one candidate per row the margin within which they are equal, and a line at zero
        if that is near.

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
        marker, face, size = _row_shape(ranking, row)
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
    name_rows(ax, [_row_label(row, named) for row, named in zip(rows, odd, strict=True)])
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontsize(8.5 if row.is_merged else 10)
        label.set_linespacing(1.0)
    shapes: list[Artist] = [
        Line2D([], [], marker="o", color=ACCENT, markersize=7, linestyle="", label="equal to the best"),
        Line2D([], [], marker="s", color=ACCENT, markerfacecolor=PAPER, linestyle="", label="undetermined"),
        Line2D([], [], marker="d", color=MUTED, markerfacecolor=PAPER, linestyle="", label="worse"),
    ]
    if ranking.equal_margin is not None:
        best = scale * rows[0].site.score
        ax.axvspan(best - scale * ranking.equal_margin, best, color=PALE, zorder=0)
        shapes.append(Patch(color=PALE, label="margin"))
    if not is_far_from_zero(scale * rows[-1].site.ci_low, scale * rows[0].site.ci_high):
        ax.axvline(0, color=NULL, linewidth=1.2, linestyle="--")
        no_update = "no update" if score_words(ranking.score).is_share else "0"
        shapes.append(Line2D([], [], color=NULL, linestyle="--", label=no_update))
    ax.grid(axis="x")
    ax.set_xlabel(score_label(ranking))
    title = "The candidate" if len(rows) == 1 else f"The best {len(rows)} candidates"
    usual = families.pop() if len(families) == 1 else main_family(ranking)
    unless = " unless named" if families else ""
    finish(figure, ranking, f"{title}, {figure_text(usual, 12)}{unless}", shapes)
    return figure


def _row_shape(ranking: Ranking, row: Candidate) -> tuple[str, str, float]:
    """Return marker, fill and size of a candidate."""
    found = standing(ranking, row.site)
    if found is Standing.EQUAL:
        return "o", ACCENT, 7
    return ("s", PAPER, 6) if found is Standing.UNDETERMINED else ("d", PAPER, 7)


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
    name_rows(ax, [figure_text(score_words(other.name).label, 26) for other in found], room=0.5)
    ax.set_xlim(-1, 1)
    ax.set_xticks([-1, 0, 1])
    ax.set_xlabel("Spearman correlation\nwith the default score")
    band = [Patch(color="#eceef1", label=f"95% of random orders of {len(sites):,} sites")]
    finish(figure, ranking, "What the other scores say", band)
    return figure
