"""The figures with lines: growth of the greedy set, share against prompts."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from steerscope.analysis.results import LearningCurve, Ranking
from steerscope.errors import InputError
from steerscope.reports.figure_style import INK, PAPER, figure_text, look, new_figure, styled
from steerscope.reports.ranking.candidates import main_family
from steerscope.reports.ranking.figure_parts import (
    finish,
    finish_columns,
    null_line,
    over_parameters,
    score_label,
)
from steerscope.reports.vocabulary import axis_scale, ordered_kinds

# More lines than this cannot be told apart, whatever their markers.
_MOST_CURVES = 8


@styled
def plot_greedy_growth(ranking: Ranking) -> Figure:
    """Draw what the greedy set reaches against its parameters, beside whole kinds steered at all layers.

    Args:
        ranking: The ranking to draw.

    Returns:
        A figure with a logarithmic axis of parameters, intervals, and a line at zero.

    Raises:
        InputError: The ranking holds no greedy search.
    """
    steps = ranking.greedy
    if not steps:
        raise InputError("the ranking holds no greedy set to draw. Rank with a budget first.")
    scale, _ = axis_scale(ranking.score)
    family = main_family(ranking)
    kinds = [kind for kind in ranking.kinds if kind.family == family and kind.n_layers > 1]
    shown = steps[:_MOST_CURVES]
    figure, ax = new_figure(3.7 + 0.22 * max(len(shown), len(kinds)))
    added: list[Line2D] = []
    whole: list[Line2D] = []
    ax.errorbar(
        [step.n_params for step in steps],
        [scale * step.score for step in steps],
        yerr=[
            [scale * (step.score - step.ci_low) for step in steps],
            [scale * (step.ci_high - step.score) for step in steps],
        ],
        color=INK, marker="o", markersize=6, linewidth=1.8, elinewidth=1.2, capsize=3,
    )  # fmt: skip
    for step in shown:
        ax.annotate(
            str(step.step), (step.n_params, scale * step.score), (-5, 7), textcoords="offset points",
            ha="right", weight="bold",
        )  # fmt: skip
        label = f"{step.step}: + {step.layer}.{figure_text(step.kind, 16)}"
        added.append(Line2D([], [], color=INK, marker="o", linestyle="", label=label))
    for name in ordered_kinds(kind.kind for kind in kinds):
        kind = next(kind for kind in kinds if kind.kind == name)
        colour, marker, _ = look(name)
        point: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "markerfacecolor": PAPER,
            "markersize": 7,
            "linestyle": "",
        }
        ax.plot(kind.n_params, scale * kind.score, **point)
        whole.append(Line2D([], [], label=f"{figure_text(name, 16)}, all layers", **point))
    over_parameters(ax, ranking, [step.n_params for step in steps] + [kind.n_params for kind in kinds])
    finish_columns(figure, ranking, "Growing the best set, site by site", added, whole)
    return figure


@styled
def plot_learning_curves(ranking: Ranking) -> Figure:
    """Draw the share each site learns against the number of prompts it learns from.

    Args:
        ranking: The ranking to draw.

    Returns:
        A figure with a logarithmic axis of prompts, at most eight curves, and a line at zero.

    Raises:
        InputError: The ranking holds no learning curves.
    """
    curves = [curve for curve in ranking.curves if curve.n_prompts][:_MOST_CURVES]
    if not curves:
        raise InputError("the ranking holds no learning curves to draw. Rank with more prompts.")
    scale, _ = axis_scale(ranking.score)
    figure, ax = new_figure(4.9)
    seen: dict[str, int] = {}
    for curve in curves:
        colour, marker, line = look(curve.kind)
        # A second curve of one kind keeps the colour and marker and is drawn hollow.
        nth = seen[curve.kind] = seen.get(curve.kind, -1) + 1
        ax.plot(
            curve.n_prompts,
            [scale * share for share in curve.share],
            color=colour, marker=marker, linestyle=line, linewidth=1.6, markersize=6,
            markerfacecolor=colour if nth == 0 else PAPER, label=_curve_name(curve, main_family(ranking)),
        )  # fmt: skip
    null_line(ax, ranking)
    numbers = sorted({number for curve in curves for number in curve.n_prompts})
    if min(numbers) > 0:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    # About seven labels fit on a phone.
    ax.set_xticks(numbers[:: max(1, len(numbers) // 7)], [f"{n:,}" for n in numbers[:: max(1, len(numbers) // 7)]])
    ax.grid(axis="y")
    ax.set_xlabel("prompts learned from (log scale)")
    ax.set_ylabel(score_label(ranking, short=True))
    finish(figure, ranking, "More prompts, more learned?", ax.get_lines()[: len(curves)], 2)
    return figure


def _curve_name(curve: LearningCurve, family: str) -> str:
    """Return a curve's site, with its family where that is not the usual one."""
    name = f"{curve.layer}.{figure_text(curve.kind, 16)}"
    return name if curve.family == family else f"{name} ({figure_text(curve.family, 10)})"
