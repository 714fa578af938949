"""The page of a validation: did the ranking foresee what training came to?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from steerscope.experiments.validation.result import Validation
from steerscope.folders import Kind
from steerscope.reports import page as pages
from steerscope.reports.agreement_figure import agreement_alt, agreement_rows, agreement_spots, plot_agreements
from steerscope.reports.page import Fact, Next, Page, Part, Section, settings_fold
from steerscope.reports.page_folder import Drawn, PageFigure, write_page_folder
from steerscope.reports.ranking.captions import FIGURE_STEMS as RANKING_STEMS
from steerscope.reports.ranking.trained import plot_predicted_against_trained, predicted_spots
from steerscope.reports.typed import subject_words, train_line
from steerscope.reports.validation.tables import score_table, sentences, trained_table
from steerscope.reports.vocabulary import clean, count, score_words

FIGURE_STEMS = ("predicted_against_trained", "agreements")
# Below it training's own seeds agree too little for any score to be judged.
_LITTLE_ATTAINABLE = 0.3


def headline(result: Validation) -> str:
    """Say whether the order of the score foresaw training."""
    if not result.agreements:
        return "Nothing was compared yet: training has not come to an end."
    found, limit = result.agreements[result.score], result.limit
    label, number = score_words(result.score).label, count(len(result.sites), "trained site")
    if limit is not None and limit < _LITTLE_ATTAINABLE:
        return f"No score could have foreseen this training: its own seeds hardly order the {number} alike."
    if found.low > 0:
        return f"The {label} foresaw, better than chance, which of the {number} do well."
    if found.high < 0:
        return f"The {label} was wrong: what it puts first trained worse at the {number}."
    return f"At the {number}, the order of the {label} was not surely better than chance."


def answer_sentences(result: Validation) -> list[str]:
    """Say how well, what trained best, and what a plain baseline would have said."""
    if not result.agreements:
        return []
    found, limit, before = result.agreements[result.score], result.limit, result.before
    best = min(result.sites, key=lambda site: site.mean_loss)
    first = max(result.sites, key=lambda site: site.scores[result.score])
    if not math.isfinite(best.mean_loss):
        return ["Every training diverged with the rates that were chosen, so nothing can be compared."]
    of = "" if limit is None else f"; {limit:.2f} is attainable with this training noise"
    said = [
        f"The Spearman correlation of the score with minus the trained loss is {found.spearman:.2f} "
        f"(95% interval {found.low:.2f} to {found.high:.2f}{of}).",
        f"Training did best at {clean(best.method)}: loss {best.mean_loss:.3f} nats and accuracy "
        f"{best.mean_accuracy:.1%}, against {before.loss:.3f} and {before.accuracy:.1%} untrained (always one "
        f"answer: {before.majority:.1%}).",
    ]
    if first is best:
        said.append("The score puts the same site first.")
    else:
        lost = first.mean_loss - best.mean_loss
        said.append(f"The score's first site, {clean(first.method)}, came out {lost:.3f} nats above it.")
    plain = [(name, result.agreements[name].spearman) for name in result.baselines if name in result.agreements]
    if plain:
        name, value = max(plain, key=lambda one: one[1])
        better = "more" if value >= found.spearman else "less"
        said.append(f"The best plain baseline, {score_words(name).label}, agrees {better}: {value:.2f}.")
    return said


def figure_entries(result: Validation) -> list[PageFigure[Validation]]:
    """Return the figures that the validation has the data for."""
    if not result.agreements or not any(None not in site.losses for site in result.sites):
        return []
    order = sorted(result.sites, key=lambda site: site.mean_loss)
    best, worst = order[0], [site for site in order if None not in site.losses][-1]
    return [
        PageFigure(
            "predicted_against_trained",
            "Predicted against trained",
            plot_predicted_against_trained,
            f"Held-out loss after training at {count(len(order), 'site')}, against the score. Training did best at "
            f"{clean(best.method)} ({best.mean_loss:.3f}), worst at {clean(worst.method)} ({worst.mean_loss:.3f}).",
            "Each mark is a site that an edit was trained at; lines reach over the training seeds. If the score "
            "foresees training, marks fall from the upper left to the lower right. Dashed: references, trained on the "
            "same prompts.",
            spots=predicted_spots,
        ),
        PageFigure(
            "agreements",
            "Every score and baseline",
            plot_agreements,
            agreement_alt(agreement_rows(result)),
            "Intervals (95%) are over layers and seeds. A score is worth its price where it lies right of the plain "
            "baselines, which cost nothing.",
            spots=agreement_spots,
        ),
    ]


def render_page(result: Validation, drawn: Sequence[Drawn[Validation]]) -> str:
    """Return the page as HTML.

    Args:
        result: The validation.
        drawn: Its figures.

    Returns:
        One file that needs no other.
    """
    said = sentences(result)[4:] if result.agreements else []
    # What diverged or ended at the edge of the grid of rates; the last sentence is the cost.
    warnings = said[:-1]
    quantised = result.model.quantised
    tables = (Part(table=trained_table(result)),) if result.agreements else ()
    scores = (Part(table=score_table(result)),) if result.agreements else ()
    parts = {"predicted_against_trained": tables, "agreements": scores}
    groups = {
        "Options": result.options,
        "Model": result.model,
        "Data": result.data,
        "Versions": result.versions,
    }
    page = Page(
        title=f"Was the ranking of {clean(result.model.name, 60)} right?",
        about=(clean(result.model.name, 80), clean(result.task, 80), count(len(result.sites), "trained site")),
        headline=headline(result),
        is_sure=bool(result.agreements) and result.agreements[result.score].low > 0,
        lead=tuple(answer_sentences(result)),
        next=_next(result),
        facts=tuple(_facts(result)),
        warnings=tuple(map(clean, [*([quantised] if isinstance(quantised, str) else []), *warnings])),
        certainty=tuple(sentences(result)[2:4]) if result.agreements else (),
        sections=tuple(Section(one.entry.heading, one.entry.stem, parts[one.entry.stem]) for one in drawn),
        counted=said[-1] if said else "",
        method=settings_fold(groups),
        command=clean(result.command),
        caveats=(
            f"It speaks of {clean(result.task, 60)} and edits trained for {result.options.steps} steps alone.",
            "References (LoRA, full fine-tuning, sets) have one seed and enter no correlation.",
            "Sites were spread over the model, so the best trained one is the best of these, not of all.",
        ),
        file="validation.json",
    )
    return pages.render(page, drawn)


def _facts(result: Validation) -> list[Fact]:
    if not result.agreements:
        return []
    found, limit = result.agreements[result.score], result.limit
    best = min(result.sites, key=lambda site: site.mean_loss)
    facts = [Fact("agreement with training", f"{found.spearman:.2f}", f"{found.low:.2f} to {found.high:.2f}")]
    if limit is not None:
        facts.append(Fact("attainable", f"{limit:.2f}", f"from {result.options.seeds} seeds"))
    facts.append(Fact("lost by trusting it", f"{found.regret:.3f}", "nats above the best site"))
    facts.append(Fact("best trained", f"{best.mean_accuracy:.1%}", f"{clean(best.method)}, test accuracy"))
    return facts


def _next(result: Validation) -> Next | None:
    if not result.agreements:
        return None
    subject = subject_words(result.command, result.model.name, result.task)
    best = min(result.sites, key=lambda site: site.mean_loss)
    train = train_line(subject, best.method, "linear", result.options.rank)
    search = f"steerscope search {subject} --budget 30 --out search"
    note = "The first trains at the site that came out best here; the second searches among more sites, in rounds."
    return Next(f"Next: an edit at {clean(best.method)}", (train, search), note)


def write_validation(result: Validation, folder: str | Path) -> Path:
    """Write ``validation.json``, ``index.html`` and ``figures/*.svg`` with ``*.png``.

    Args:
        result: The validation.
        folder: Where the files go; made if missing. The folder that the validation was made in may be named.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder holds something else, or cannot be written to.
    """
    stems = (*FIGURE_STEMS, *RANKING_STEMS)  # earlier versions wrote the ranking's page there
    return write_page_folder(
        result,
        folder,
        Kind.VALIDATION,
        "validation.json",
        figure_entries(result),
        render_page,
        stems=stems,
        also=(Kind.RANKING,),
    )
