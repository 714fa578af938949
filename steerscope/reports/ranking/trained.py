"""The figure that a validation adds to a report: what the score predicted against what training gave."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerscope.analysis.result_parts import Evidence
from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.experiments.validation.result import Validation
from steerscope.reports.figure_style import GRID, MUTED, figure_text, finish_with_foot, look, new_figure, styled
from steerscope.reports.page_folder import Spot, spot_at
from steerscope.reports.ranking.figure_parts import finish
from steerscope.reports.tables import TextTable
from steerscope.reports.vocabulary import clean, count, ordered_kinds, score_words

# Where, as a part of the width, every other reference line has its name.
_BESIDE = 0.32
# Sites up to which marks are large.
_FEW = 30


@dataclass(frozen=True)
class Mark:
    """A site whose trainings came to an end: its score, the mean held-out loss in nats, and the range over seeds."""

    site: str
    score: float
    loss: float
    low: float
    high: float

    @property
    def kind(self) -> str:
        """The kind of site."""
        return self.site.partition(".")[2]


def trained_marks(ranking: Ranking) -> list[Mark]:
    """Return the sites that this ranking was validated at; none if it was not, or by training elsewhere."""
    return _marks(_evidence_of(ranking))


def _evidence_of(result: Ranking | Validation) -> Evidence:
    return (result.evidence or Evidence()) if isinstance(result, Ranking) else result.evidence()


def _marks(evidence: Evidence) -> list[Mark]:
    return [
        Mark(one.site, one.score, one.loss, one.low, one.high)
        for one in evidence.points
        if one.loss is not None and one.low is not None and one.high is not None
    ]


def foreseen_table(ranking: Ranking) -> TextTable:
    """Return how well every score foresaw training, best first; no rows where nothing was trained."""
    evidence = _evidence_of(ranking)
    rows = tuple(
        (
            str(place),
            score_words(one["score"]).label + (" (plain baseline)" if one["is_baseline"] else ""),
            f"{one['spearman']:.2f} [{one['low']:.2f}, {one['high']:.2f}]",
            f"{one['partial']:.2f}",
            f"{one['regret']:.3f}",
        )
        for place, one in enumerate(evidence.agreements, 1)
    )
    limit = evidence.attainable
    note = "" if limit is None else f" With this training noise {limit:.2f} is attainable: {_meaning(limit)}."
    return TextTable(
        "Which score foresaw training",
        ("rank", "score", "Spearman with minus the loss", "given depth", "regret"),
        frozenset({"rank", "Spearman with minus the loss", "given depth", "regret"}),
        rows,
        "Intervals (95%) are over layers and seeds. Regret: the loss at the site the score puts first, minus the "
        f"lowest loss of all, in nats.{clean(note)}"
        if rows
        else "",
    )


def _meaning(attainable: float) -> str:
    if attainable <= 0:
        return "training itself has no order here that could be foreseen, so the correlations say little"
    return "what a perfect score would have"


def predicted_spots(result: Ranking | Validation, figure: Figure) -> list[Spot]:
    """Return what every mark says.

    Args:
        result: What was drawn.
        figure: What :func:`plot_predicted_against_trained` drew of it, saved once.

    Returns:
        A spot per site.
    """
    ax = figure.axes[0]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    half, high = 0.02 * (right - left), 0.025 * (top - bottom)
    return [
        spot_at(
            ax, (point.score - half, point.loss - high), (point.score + half, point.loss + high),
            f"{clean(point.site)}: loss {point.loss:.3f} ({point.low:.3f} to {point.high:.3f} over seeds), score "
            f"{point.score:.3g}",
        )
        for point in sorted(_marks(_evidence_of(result)), key=lambda point: point.score)
    ]  # fmt: skip


@styled
def plot_predicted_against_trained(result: Ranking | Validation) -> Figure:
    """Draw held-out loss after training against the score, one mark per site.

    Args:
        result: A validation, or a ranking whose evidence is one.

    Returns:
        The figure.

    Raises:
        InputError: The ranking was not validated by training, or no training of the validation came to an end.
    """
    evidence = _evidence_of(result)
    points = _marks(evidence)
    if not points:
        raise InputError("there are no trained sites to draw. Run steerscope validate.")
    figure, ax = new_figure(4.6)
    # Hundreds of sites may be drawn: a mark is then smaller, and a kind's lines and marks are one element each.
    size = 7 if len(points) <= _FEW else 4
    for kind in ordered_kinds(point.kind for point in points):
        own = [point for point in points if point.kind == kind]
        colour, marker, _ = look(kind)
        at = [point.score for point in own]
        ax.vlines(at, [point.low for point in own], [point.high for point in own], color=colour, linewidth=1)
        ax.plot(at, [point.loss for point in own], marker=marker, color=colour, markersize=size, linestyle="")
    best = min(points, key=lambda point: point.loss)
    scores = [point.score for point in points]
    side = "right" if best.score > (min(scores) + max(scores)) / 2 else "left"  # inwards, not over the edge
    ax.annotate(best.site, (best.score, best.low), (0, -6), textcoords="offset points", ha=side, va="top", fontsize=9)
    lines = sorted(evidence.references, key=lambda line: line.loss)
    top, bottom = max(point.high for point in points), min(point.low for point in points)
    # What is far above all sites would press them together: it is said, not drawn.
    far = [line for line in lines if line.loss > top + (top - bottom)]
    lines = [line for line in lines if line not in far]
    if far:
        said = ", ".join(f"{figure_text(line.name, 24)} {line.loss:.2f}" for line in far)
        ax.annotate(f"above: {said}", (0.01, 0.99), xycoords="axes fraction", va="top", fontsize=8.5, color=MUTED)
    for i, line in enumerate(lines):
        name = line.name if "+" not in line.name else f"set of {line.name.count('+') + 1} sites"
        ax.axhline(line.loss, color=MUTED, linewidth=1, linestyle="--", zorder=0)
        ax.annotate(
            # Neighbours stand apart: lines may be close.
            figure_text(name, 24), (_BESIDE * (i % 2), line.loss), (2, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=8.5, color=MUTED,
        )  # fmt: skip
    ax.grid(color=GRID)
    ax.set_xlabel(figure_text(score_words(result.score).label))
    ax.set_ylabel("held-out loss after training (nats)")
    ax.margins(y=0.12)
    kinds = ordered_kinds(point.kind for point in points)
    shapes = [
        Line2D([], [], marker=look(kind)[1], color=look(kind)[0], linestyle="", label=figure_text(kind, 16))
        for kind in kinds
    ]
    title = "Predicted against trained"
    if isinstance(result, Ranking):
        finish(figure, result, title, shapes, 4)
    else:
        seeds = count(result.options.seeds, "seed")
        foot = f"{figure_text(result.model.name, 28)} | {figure_text(result.task, 28)} | {seeds}"
        finish_with_foot(figure, foot, title, shapes, 4)
    return figure
