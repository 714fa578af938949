"""The page of a site table: what training at each site came to, and whether scores foresaw it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from steerscope.errors import InputError
from steerscope.experiments.site_tables.common import LEAST_SITES
from steerscope.experiments.site_tables.judging import Judgement, judge
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.folders import Kind
from steerscope.reports import page as pages
from steerscope.reports.page import Fact, Next, Page, Part, Section, settings_fold
from steerscope.reports.page_folder import Drawn, PageFigure, write_page_folder
from steerscope.reports.site_tables.figures import loss_spots, plot_foreseen, plot_losses
from steerscope.reports.site_tables.judgement_page import agreement_entry, judgement_folds, verdict_sentences
from steerscope.reports.site_tables.tables import score_table
from steerscope.reports.site_tables.trained_table import best_sites, outcome_table
from steerscope.reports.typed import subject_words, train_line
from steerscope.reports.vocabulary import clean, count, listing, score_words

# Scores that are drawn against the trained loss, where a table has them.
_DRAWN = ("learnable_share", "predicted_loss")
TABLE_STEMS = ("losses", *(f"foreseen_{name}" for name in _DRAWN), "foreseen", "agreements")
# More than so many sites are counted, not named.
_MOST_NAMED = 4
_LOWER_RIGHT = (
    "Each mark is a site. If the score foresees training, marks fall from the upper left to the lower right; lines "
    "reach over the seeds."
)


def table_headline(table: SiteTable) -> str:
    """Say at which sites training does best, and which cannot be told from the best one."""
    found, equal = table.outcomes(), best_sites(table)
    best = min(found, key=lambda one: one.loss)
    if best.loss >= table.base.recalibrated_loss:
        return (
            "Training at these sites gives no more than a recalibrated output: nothing about the questions was learned."
        )
    if len(table.seeds) < 2:
        return f"Of {count(len(found), 'site')}, {best.site} came out lowest; one seed cannot say how surely."
    if len(equal) == 1:
        return f"Train at {best.site}: of {count(len(found), 'site')}, no other comes as low."
    if len(equal) <= _MOST_NAMED:
        names = listing([str(one.site) for one in equal])
        return f"Train at {names}: {count(len(table.seeds), 'seed')} cannot say which of them is best."
    return (
        f"{len(equal)} of {count(len(found), 'site')} cannot be told from the best, {best.site}, by "
        f"{count(len(table.seeds), 'seed')}."
    )


def _table_lead(table: SiteTable) -> list[str]:
    base, best = table.base, min(table.outcomes(), key=lambda one: one.loss)
    worst = max(table.outcomes(), key=lambda one: one.loss)
    low = "diverged" if worst.loss == float("inf") else f"reaches {worst.loss:.3f}"
    return [
        f"The best site reaches a test loss of {best.loss:.3f} nats and {best.accuracy:.1%} right; the worst of "
        f"{count(len(table.outcomes()), 'site')}, {worst.site}, {low}.",
        f"Without an edit the model has {base.loss:.3f} and {base.accuracy:.1%}; with the best temperature and "
        f"output bias {base.recalibrated_loss:.3f} and {base.recalibrated_accuracy:.1%}; always one answer "
        f"{base.majority:.1%}.",
    ]


def _table_figures(table: SiteTable, judgement: Judgement | None) -> Iterator[PageFigure[SiteTable]]:
    """Yield what a table has the data for: losses by layer, scores against losses, and how they agree."""
    found = table.outcomes()
    if len(found) < LEAST_SITES:
        return
    order = sorted(found, key=lambda one: one.loss)
    yield PageFigure(
        "losses",
        "What training at each site came to",
        plot_losses,
        f"Lines of the test loss over the layers, one per kind of site. Lowest: {order[0].site} with "
        f"{order[0].loss:.3f}; highest: {order[-1].site}.",
        "Lower is better. Bars reach over the seeds. Dashed: the model without an edit; dotted: with the best "
        "temperature and output bias, which knows nothing of the question.",
        spots=loss_spots,
    )
    names = [name for name in _DRAWN if name in table.scores] or sorted(table.scores)[:1]
    for name in names:
        stem = f"foreseen_{name}" if name in _DRAWN else "foreseen"
        label = score_words(name).label
        yield PageFigure(
            stem,
            f"Predicted against trained: {label}",
            partial(plot_foreseen, name=name),
            f"Test loss after training at {count(len(found), 'site')}, against the {label}.",
            _LOWER_RIGHT,
        )
    if judgement is not None and judgement.scores:
        yield agreement_entry(judgement)


def render_table_page(judgement: Judgement | None, table: SiteTable, drawn: Sequence[Drawn[SiteTable]]) -> str:
    """Return the page of a table as HTML.

    Args:
        judgement: What it says of its scores, or ``None``.
        table: The table.
        drawn: Its figures.

    Returns:
        One file that needs no other.
    """
    found = table.outcomes()
    best = min(found, key=lambda one: one.loss)
    model, task = clean(table.model.name, 80), clean(table.task, 80)
    quantised = table.model.quantised
    outcomes = (Part(table=outcome_table(table)),)
    judged = () if judgement is None else (Part(table=score_table(judgement)),)
    folds = () if judgement is None else judgement_folds(judgement)
    sections = [
        Section(
            one.entry.heading,
            one.entry.stem,
            {"losses": outcomes, "agreements": judged}.get(one.entry.stem, ()),
            folds if one.entry.stem == "agreements" else (),
        )
        for one in drawn
    ]
    if not drawn:
        sections = [Section("What training at each site came to", parts=outcomes)]
    edge = [str(one.site) for one in found if one.tuned and not one.interior]
    page = Page(
        title=f"Training at every site of {model}",
        about=(model, task, count(len(found), "site"), count(len(table.seeds), "seed")),
        headline=table_headline(table),
        is_sure=best.loss < table.base.recalibrated_loss,
        lead=tuple(_table_lead(table)),
        next=_table_next(table),
        facts=(
            Fact("lowest test loss", f"{best.loss:.3f}", f"{best.site}, nats"),
            Fact("its accuracy", f"{best.accuracy:.1%}", f"untrained {table.base.accuracy:.1%}"),
            Fact("sites", f"{len(found):,}", f"{count(len(table.seeds), 'seed')}, {table.steps} steps"),
        ),
        warnings=tuple(
            clean(text)
            for text in (
                quantised if isinstance(quantised, str) else "",
                table.note,
                f"Learning rates at the edge of those tried: {listing(edge, 6)}." if edge else "",
            )
            if text
        ),
        certainty=() if judgement is None else verdict_sentences(judgement),
        sections=tuple(sections),
        method=settings_fold(
            {
                "Edit": table.edit,
                "Schedule": table.schedule,
                "Model": table.model,
                "Data": table.data,
                "Cost": table.cost,
                "Versions": table.versions,
            }
        ),
        command=clean(table.command),
        caveats=(
            f"It speaks of {task}, of this edit and of {table.steps} steps; longer training may order sites otherwise.",
            "The best of many sites was picked after looking at test examples, so its own loss is a little too good.",
        ),
        file="table.json",
    )
    return pages.render(page, drawn)


def _table_next(table: SiteTable) -> Next:
    subject = subject_words(table.command, table.model.name, table.task)
    best, rank = min(table.outcomes(), key=lambda one: one.loss), table.edit.rank
    family = table.edit.family
    train = train_line(subject, str(best.site), family, rank if isinstance(rank, int) else None)
    lines = [train, "steerscope score-sites table.json --score mine.py"]
    note = "The last compares a score of your own with these outcomes, without training anything (in this folder)."
    return Next(f"Next: an edit at {best.site}", tuple(line for line in lines if line), note)


def write_site_table(table: SiteTable, folder: str | Path) -> Path:
    """Write ``table.json``, ``index.html`` and ``figures/*.svg`` with ``*.png``; runs in the folder are left alone.

    Args:
        table: What a sweep came to.
        folder: Where the files go; made if missing. The sweep's own folder may be named.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder holds something else, or cannot be written to.

    Cost: about five seconds, and a second per ten scores in the table.
    """
    judgement = _judged(table)
    entries = list(_table_figures(table, judgement))
    return write_page_folder(
        table,
        folder,
        Kind.SWEEP,
        "table.json",
        entries,
        partial(render_table_page, judgement),
        stems=TABLE_STEMS,
        also=(Kind.RANKING,),
    )


def _judged(table: SiteTable) -> Judgement | None:
    if not table.scores or len(table.outcomes()) < LEAST_SITES:
        return None
    try:
        return judge(table)
    except InputError:  # too few sites with the same seeds, or scores that do not cover them
        return None
