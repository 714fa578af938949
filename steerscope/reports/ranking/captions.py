"""Which figures a report shows, in which order, and what each one says in words.

``alt`` says what the figure shows to a reader who cannot see it; ``caption`` says how to read it.
"""

from __future__ import annotations

from collections.abc import Iterator

from steerscope.analysis.results import Ranking
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.reports.page_folder import PageFigure
from steerscope.reports.ranking import figures
from steerscope.reports.ranking.candidates import (
    agreements,
    candidates,
    main_family,
    num_layers,
    prompts_learned_from,
    sites_of_family,
)
from steerscope.reports.ranking.cost import choices, pareto_line
from steerscope.reports.ranking.foreseen import foreseen_entry
from steerscope.reports.ranking.heat_map import heat_map_spots
from steerscope.reports.ranking.text import set_sentence
from steerscope.reports.ranking.trained import plot_predicted_against_trained, predicted_spots, trained_marks
from steerscope.reports.ranking.verdict import standings_sentence
from steerscope.reports.vocabulary import clean, count, format_score, ordered_kinds, score_words

FIGURE_STEMS = (
    "foreseen",
    "predicted_against_trained",
    "heat_map",
    "ranking",
    "other_scores",
    "kinds_over_depth",
    "gain_and_cost",
    "greedy_growth",
    "learning_curves",
)


def figure_entries(ranking: Ranking, table: SiteTable | None = None) -> list[PageFigure[Ranking]]:
    """Return the figures this ranking has the data for, in the order of the page.

    Args:
        ranking: The ranking.
        table: Trained outcomes of its model and task.

    Returns:
        The figures, none without sites.

    Raises:
        InputError: The table is of another model or task, or has sites that were not ranked.
    """
    if not ranking.sites:
        return []
    return [*([] if table is None else [foreseen_entry(ranking, table)]), *_entries(ranking)]


def _entries(ranking: Ranking) -> Iterator[PageFigure[Ranking]]:
    """Yield the figures' entries; each figure's own precondition is tested here, before drawing."""
    name, rows, family = ranking.score, candidates(ranking), main_family(ranking)
    sites = sites_of_family(ranking, family)
    kinds = ordered_kinds(site.kind for site in sites)
    words = score_words(name)
    label = words.label
    top = f"{sites[0].name} with {format_score(sites[0].score, name)}"
    lowest = format_score(min(site.score for site in sites), name)
    if trained := trained_marks(ranking):
        best_first = sorted(trained, key=lambda point: point.loss)
        yield PageFigure(
            "predicted_against_trained",
            "Predicted against trained",
            plot_predicted_against_trained,
            f"Held-out loss after training at {count(len(trained), 'site')}, against the score. Training did best at "
            f"{clean(best_first[0].site)} (loss {best_first[0].loss:.3f}) and worst at "
            f"{clean(best_first[-1].site)} ({best_first[-1].loss:.3f}).",
            "Each mark is a site that an edit was trained at; lines reach over the training seeds. If the score "
            "foresees training, marks fall from the upper left to the lower right. Dashed: references, trained on the "
            "same prompts.",
            spots=predicted_spots,
        )
    yield PageFigure(
        "heat_map",
        "Every site at a glance",
        figures.plot_heat_map,
        f"Heat map of how far every site's {label} is below the best, over {count(num_layers(ranking), 'layer')} and "
        f"{count(len(kinds), 'kind')} of site, linear edits and vectors side by side. "
        f"The highest {clean(family, 24)} edit is {clean(top)}; the lowest is {lowest}.",
        "Each cell is an edit at one site; layers grow upwards, kinds go in the order in which a block computes them. "
        "Lighter is better. Framed: equal to the best within the margin. Crossed: undetermined, because the prompts "
        "cannot say whether it is equal or worse. Hatched: the model has no such site.",
        spots=heat_map_spots,
        is_wide=True,
    )
    shown = rows[:20]
    yield PageFigure(
        "ranking",
        "The best candidates and their intervals",
        figures.plot_ranking,
        f"The best {count(len(shown), 'candidate')} with 95% intervals, from {shown[0].label} at "
        f"{format_score(shown[0].site.score, name)} down to {shown[-1].label} at "
        f"{format_score(shown[-1].site.score, name)}; {standings_sentence(ranking)}",
        "Lines are 95% intervals over prompts (delete-group jackknife). What is equal or worse is decided on "
        "the paired difference to the best, not on whether two lines overlap. "
        "The axis holds zero only where that is near."
        + (" A dashed line is what predicting no update scores." if words.is_share else ""),
    )
    others = agreements(ranking)
    if others and len(sites) >= 3:
        ranked = [other for other in others if other.spearman is not None]
        ends = ""
        if ranked:
            most, least = ranked[0], ranked[-1]
            ends = (
                f" It runs from {most.spearman:.2f} for {score_words(most.name).label} to {least.spearman:.2f} "
                f"for {score_words(least.name).label}."
            )
        yield PageFigure(
            "other_scores",
            "What the other scores say",
            figures.plot_other_scores,
            f"Spearman correlation of {count(len(others), 'other score')} with the {label} over "
            f"{count(len(sites), 'site')}.{ends}",
            f"How alike each score orders the {clean(family, 24)} sites, and what its own favourite site has of "
            f"the {label}. A score inside the grey band agrees no more than a random order does.",
        )
    if num_layers(ranking) > 1:
        yield PageFigure(
            "kinds_over_depth",
            "Kinds over depth",
            figures.plot_kinds_over_depth,
            f"One panel for each of {', '.join(map(clean, kinds))}: lines of the {label} over the layers, of linear "
            f"edits and of vectors, with bands for their intervals. The highest linear point is {clean(top)}.",
            "The heat map as lines on one scale: where in depth each kind does best, and where a vector, which costs a "
            "fraction, does as well as a linear edit. Bands are 95% intervals of each candidate by itself.",
        )
    line = pareto_line(choices(ranking))
    if len(choices(ranking)) > 1:
        yield PageFigure(
            "gain_and_cost",
            "What more parameters buy",
            figures.plot_gain_and_cost,
            f"The {label} of {count(len(choices(ranking)), 'choice')} against trained parameters. The line of what "
            f"nothing cheaper beats goes from {line[0].name} ({format_score(line[0].score, name)}, "
            f"{count(line[0].n_params, 'parameter')}) to {line[-1].name} ({format_score(line[-1].score, name)}, "
            f"{count(line[-1].n_params, 'parameter')}).",
            "Up and to the left is better. The line steps up where more parameters score more; its steps are numbered. "
            "Steps within the shaded margin buy nothing that these prompts can tell. A linear edit's parameters "
            "are counted at the chosen rank, which is no part of the score.",
        )
    if ranking.greedy:
        grown = ranking.set_score
        yield PageFigure(
            "greedy_growth",
            "Growing a set of sites",
            figures.plot_greedy_growth,
            f"The {score_words(grown).label} of the greedy set against its parameters, in "
            f"{count(len(ranking.greedy), 'step')} from {format_score(ranking.greedy[0].score, grown)} to "
            f"{format_score(ranking.greedy[-1].score, grown)}. {set_sentence(ranking)}",
            "Numbered points: the set after adding each site. Hollow marks: one kind steered at every layer, for "
            "comparison. Up and to the left is better.",
        )
    if any(curve.n_prompts for curve in ranking.curves):
        first = next(curve for curve in ranking.curves if curve.n_prompts)
        yield PageFigure(
            "learning_curves",
            "Would more prompts help?",
            figures.plot_learning_curves,
            f"The {label} against the number of prompts learned from. {first.layer}.{clean(first.kind, 24)} goes "
            f"from {format_score(first.share[0], name)} with {count(first.n_prompts[0], 'prompt')} to "
            f"{format_score(first.share[-1], name)} with {count(first.n_prompts[-1], 'prompt')}.",
            f"A curve that still rises at {count(prompts_learned_from(ranking), 'prompt')} says that data, "
            "at least in part, limits the share.",
        )
