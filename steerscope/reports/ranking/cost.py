"""What an edit scores against what it costs: every candidate, kinds at all layers, sets, and the line of the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.reports.figure_style import INK, LINE_LOOKS, PALE, PAPER, figure_text, new_figure, styled
from steerscope.reports.ranking.candidates import candidates, kind_candidates, score_of_kinds
from steerscope.reports.ranking.figure_parts import (
    finish_columns,
    over_parameters,
)
from steerscope.reports.ranking.verdict import Verdict, recommends
from steerscope.reports.tables import TextTable
from steerscope.reports.vocabulary import axis_scale, clean, format_score

# More names than these are not legible in the figure; the table has all.
_MOST_NAMED = 7
# Pixels between points that both have room for a number.
_NEAR = 11
_ONE, _KIND, _SET = "one site", "one kind, all layers", "greedy set"


@dataclass(frozen=True)
class Choice:
    """Something to train: its name, whether it is one site, a kind or a set, what it costs and what it scores."""

    name: str
    sort: str
    family: str
    n_params: int
    score: float


def choices(ranking: Ranking) -> list[Choice]:
    """Return everything that was scored by the ranking's score: candidates, and kinds and sets where they are by it."""
    found = [Choice(row.label, _ONE, row.site.family, row.site.n_params, row.site.score) for row in candidates(ranking)]
    if score_of_kinds(ranking) == ranking.score:
        found += [
            Choice(f"{row.label}, all layers", _KIND, row.kind.family, row.kind.n_params, row.kind.score)
            for row in kind_candidates(ranking)
            if row.kind.n_layers > 1
        ]
    if ranking.set_score == ranking.score:
        found += [
            Choice(f"set of {step.step} sites", _SET, step.family, step.n_params, step.score)
            for step in ranking.greedy
            if step.step > 1
        ]
    return found


def pareto_line(found: Iterable[Choice]) -> list[Choice]:
    """Return the choices that nothing as cheap or cheaper beats, cheapest first."""
    kept: list[Choice] = []
    for one in sorted(found, key=lambda one: (one.n_params, -one.score)):
        if not kept or one.score > kept[-1].score:
            kept.append(one)
    return kept


def pareto_table(ranking: Ranking) -> TextTable:
    """Return the choices on the line as a table."""
    return TextTable(
        "What nothing cheaper beats",
        ("no.", "choice", "family", "params", "score"),
        frozenset({"no.", "params", "score"}),
        tuple(
            (str(i), one.name, clean(one.family, 12), f"{one.n_params:,}", format_score(one.score, ranking.score))
            for i, one in enumerate(pareto_line(choices(ranking)), 1)
        ),
        "Point estimates: neighbours on the line may be equal within the margin.",
    )


@styled
def plot_gain_and_cost(ranking: Ranking) -> Figure:
    """Draw the score of every candidate, kind and set against its trained parameters.

    Args:
        ranking: The ranking to draw.

    Returns:
        A figure with a logarithmic axis of parameters, the line of what nothing cheaper beats, and the cheapest choice
        that is equal to the best marked where the ranking recommends one.

    Raises:
        InputError: The ranking has fewer than two choices to compare.
    """
    found = choices(ranking)
    if len(found) < 2:
        raise InputError("the ranking has fewer than two choices to draw against their cost. Rank more sites.")
    scale, _ = axis_scale(ranking.score)
    figure, ax = new_figure(4.7)
    handles: list[Line2D | Patch] = []
    sorts = [(_ONE, "linear"), (_ONE, "vector"), (_KIND, None), (_SET, None)]
    for (sort, family), (colour, marker, _) in zip(sorts, LINE_LOOKS, strict=False):
        own = [one for one in found if one.sort == sort and (family is None or (one.family == family))]
        if sort == _ONE and family == "linear":
            own = [one for one in found if one.sort == _ONE and one.family != "vector"]
        if not own:
            continue
        face = colour if sort == _ONE else PAPER
        label = sort if family is None else f"{sort}, {figure_text(own[0].family, 12)}"
        ax.plot(
            [one.n_params for one in own], [scale * one.score for one in own], marker, color=colour,
            markerfacecolor=face, markersize=4.5 if sort == _ONE else 6, alpha=0.55 if sort == _ONE else 1.0,
            linestyle="",
        )  # fmt: skip
        handles.append(Line2D([], [], color=colour, marker=marker, markerfacecolor=face, linestyle="", label=label))
    line = pareto_line(found)
    ax.plot(
        [one.n_params for one in line], [scale * one.score for one in line], color=INK, linewidth=1.4, zorder=4,
        drawstyle="steps-post",
    )  # fmt: skip
    handles.append(Line2D([], [], color=INK, linewidth=1.4, label="nothing cheaper is better"))
    if recommends(ranking):
        recommended = Verdict(ranking).cheapest
        cheapest = recommended.site
        ax.plot(
            cheapest.n_params, scale * cheapest.score, "o", color=INK, markerfacecolor="none", markersize=13,
            markeredgewidth=1.8, zorder=5,
        )  # fmt: skip
        handles.append(
            Line2D([], [], color=INK, marker="o", markerfacecolor="none", markersize=11, linestyle="",
                   label=f"cheapest equal choice: {figure_text(recommended.label, 24)}")
        )  # fmt: skip
    if ranking.equal_margin is not None:
        best = scale * ranking.sites[0].score
        ax.axhspan(best - scale * ranking.equal_margin, best, color=PALE, zorder=0)
        handles.append(Patch(color=PALE, label="within the margin of the best site"))
    over_parameters(ax, ranking, [one.n_params for one in found])
    named = [
        Line2D([], [], linestyle="", label=f"{number}: {figure_text(_name(one), 30)}")
        for number, one in enumerate(line[:_MOST_NAMED], 1)
    ]
    finish_columns(figure, ranking, "What more parameters buy", handles, named)
    _number_points(ax, [(one.n_params, scale * one.score) for one in line])
    return figure


def _number_points(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Write a number at the upper left of every point that is not too near to one that has its number."""
    last = None
    for number, (x, y) in enumerate(points, 1):
        at = ax.transData.transform((x, y))
        if last is not None and abs(at - last).max() < _NEAR:
            continue
        last = at
        ax.annotate(
            str(number), (x, y), (-5, 5), textcoords="offset points", ha="right", weight="bold", fontsize=9, zorder=6
        )


def _name(one: Choice) -> str:
    return f"{one.name} ({one.family})" if one.sort == _ONE else one.name
