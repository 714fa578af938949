"""How scores agree with trained losses: one row per score, with its interval, beside what is attainable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerscope.errors import InputError
from steerscope.experiments.site_tables.judging import Judgement
from steerscope.experiments.validation.result import Validation
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
from steerscope.reports.vocabulary import score_words


@dataclass(frozen=True)
class AgreementRow:
    """A score's Spearman correlation with minus the trained loss, with its 95% interval."""

    label: str
    value: float
    low: float
    high: float
    is_baseline: bool


def agreement_rows(result: Validation | Judgement) -> list[AgreementRow]:
    """Return the scores of a result, best first."""
    if isinstance(result, Validation):
        plain = set(result.baselines)
        own = result.agreements
    else:
        plain = {*result.baselines, *result.trained}
        own = {name: one.agreement for name, one in result.scores.items()}
    rows = [
        AgreementRow(score_words(name).label, one.spearman, one.low, one.high, name in plain)
        for name, one in own.items()
    ]
    return sorted(rows, key=lambda row: (-row.value, row.label))


@styled
def plot_agreements(result: Validation | Judgement) -> Figure:
    """Draw how well every score foresaw training, best first; plain baselines are hollow.

    Args:
        result: A validation, or what a site table says of scores.

    Returns:
        The figure: Spearman correlations with 95% intervals, and a dashed line at what is attainable.

    Raises:
        InputError: No score was compared with training.
    """
    rows = agreement_rows(result)
    if not rows:
        raise InputError("no score was compared with training, so there is nothing to draw. Validate again.")
    figure, ax = new_figure(0.27 * len(rows) + 1.9)
    for place, row in enumerate(rows):
        colour = MUTED if row.is_baseline else ACCENT
        ax.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6)
        ax.plot(
            row.value, place, "s" if row.is_baseline else "o", color=colour,
            markerfacecolor=PAPER if row.is_baseline else colour, markersize=6,
        )  # fmt: skip
    ax.axvline(0, color=NULL, linewidth=1.2)
    handles = [
        Line2D([], [], color=ACCENT, marker="o", label="score"),
        Line2D([], [], color=MUTED, marker="s", markerfacecolor=PAPER, label="plain baseline or real steps"),
        Line2D([], [], color=NULL, label="no agreement"),
    ]
    limit, about = _about(result)
    if limit is not None:
        ax.axvline(limit, color=NULL, linewidth=1.2, linestyle="--")
        handles.append(Line2D([], [], color=NULL, linestyle="--", label="attainable with this training noise"))
    name_rows(ax, [figure_text(row.label, 34) for row in rows])
    ax.set_xlim(min(-0.3, *(row.low for row in rows)) - 0.03, 1.03)
    ax.grid(axis="x")
    ax.set_xlabel("Spearman with minus the trained loss", loc="right")
    finish_with_foot(figure, figure_text(about, 90), "Which score foresaw training", handles, 2)
    return figure


def agreement_spots(result: Validation | Judgement, figure: Figure) -> list[Spot]:
    """Return what every row says.

    Args:
        result: The result.
        figure: What :func:`plot_agreements` drew of it, saved once.

    Returns:
        A spot per score.
    """
    ax = figure.axes[0]
    low, high = ax.get_xlim()
    found = []
    for place, row in enumerate(agreement_rows(result)):
        text = f"{row.label}: {row.value:.2f} ({row.low:.2f} to {row.high:.2f})"
        found.append(spot_at(ax, (low, place + 0.5), (high, place - 0.5), text))  # the vertical axis points down
    return found


def agreement_alt(rows: Sequence[AgreementRow]) -> str:
    """Return the figure in a sentence or two."""
    best, last = rows[0], rows[-1]
    return (
        f"Spearman correlations of {len(rows)} scores and baselines with minus the trained loss, best first, from "
        f"{best.label} with {best.value:.2f} ({best.low:.2f} to {best.high:.2f}) to {last.label} with {last.value:.2f}."
    )


def _about(result: Validation | Judgement) -> tuple[float | None, str]:
    if isinstance(result, Validation):
        return result.limit, f"{result.study} | {len(result.sites)} sites"
    return result.attainable.spearman, f"{result.table} | {result.num_sites} sites | {result.num_seeds} seeds"
