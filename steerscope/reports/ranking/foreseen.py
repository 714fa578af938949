"""A ranking beside the trained outcomes of the same model and task."""

from __future__ import annotations

from matplotlib.figure import Figure

from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.experiments.agreement.correlations import finite_losses
from steerscope.experiments.site_tables.common import common_outcomes
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.reports.page_folder import PageFigure
from steerscope.reports.ranking.candidates import sites_of_family
from steerscope.reports.site_tables.figures import plot_foreseen
from steerscope.reports.vocabulary import clean, count, score_words


def foreseen_entry(ranking: Ranking, table: SiteTable) -> PageFigure[Ranking]:
    """Return the figure of a ranking's score against what training came to.

    Args:
        ranking: The ranking.
        table: Trained outcomes of its model and task.

    Returns:
        The figure of a page.

    Raises:
        InputError: The table is of another model or task, or has sites that were not ranked.
    """
    for what, ours, theirs in (
        ("weights", ranking.model.sha256, table.model.sha256),
        ("task", ranking.task, table.task),
    ):
        if ours != theirs:
            raise InputError(
                f"the table of {clean(table.name, 80)} and the ranking are not of one {what}: {clean(theirs, 40)} and "
                f"{clean(ours, 40)}. Give a table of this model and task, as steerscope sweep makes it."
            )
    family = table.edit.ranked_as
    scores = {site.name: site.score for site in sites_of_family(ranking, family)}
    common, label = common_outcomes(table), score_words(ranking.score).label
    if missing := [site for site in common.sites if site not in scores]:
        raise InputError(
            f"the ranking has no {clean(family, 24)} edit at {missing[0]}, which the table was trained at. Rank all "
            "kinds of site."
        )
    losses = finite_losses(common.losses).mean(1)
    best = common.sites[int(losses.argmin())]
    first = max(common.sites, key=lambda site: scores[site])

    def plot(_: Ranking) -> Figure:
        return plot_foreseen(table, ranking.score, scores)

    return PageFigure(
        "foreseen",
        "Predicted against trained",
        plot,
        f"Test loss after training at {count(len(common.sites), 'site')} of this model on this task, against the "
        f"{label}. Training did best at {best}; the score puts {first} first, "
        f"{losses[common.sites.index(first)] - losses.min():.3f} nats above it.",
        "Each mark is a site; lines reach over the training seeds. If the score foresees training, marks fall from the "
        "upper left to the lower right.",
    )
