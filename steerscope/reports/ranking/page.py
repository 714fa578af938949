"""The page of a ranking: the answer, what is behind it, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from steerscope.analysis.results import Ranking
from steerscope.reports import page as pages
from steerscope.reports.page import Fact, Fold, Next, Page, Pairs, Part, Section, setting_pairs, share_bar
from steerscope.reports.page_folder import Drawn, PageFigure
from steerscope.reports.ranking import text, verdict
from steerscope.reports.ranking.candidates import candidates, prompts_learned_from
from steerscope.reports.ranking.cost import pareto_table
from steerscope.reports.ranking.evidence import evidence_sentence, studies_table
from steerscope.reports.ranking.next_step import next_step
from steerscope.reports.ranking.tables import by_score, greedy_table, kind_table, site_table
from steerscope.reports.ranking.trained import foreseen_table
from steerscope.reports.tables import TextTable
from steerscope.reports.vocabulary import (
    clean,
    count,
    format_interval,
    format_score,
    kind_meaning,
    ordered_kinds,
    score_words,
)


def render_page(ranking: Ranking, drawn: Sequence[Drawn[Ranking]]) -> str:
    """Return the page as HTML.

    Args:
        ranking: The ranking to report.
        drawn: The figures.

    Returns:
        One HTML document that loads nothing. Every string of the ranking is escaped.
    """
    return pages.render(page_of(ranking, [one.entry for one in drawn]), drawn)


def page_of(ranking: Ranking, figures: Sequence[PageFigure[Ranking]]) -> Page:
    """Return what the page of a ranking says.

    Args:
        ranking: The ranking.
        figures: The figures that it has the data for.

    Returns:
        The page, a section per figure.
    """
    model, task = clean(ranking.model.name, 80), clean(ranking.task, 80)
    evidence = evidence_sentence(ranking)
    certainty = tuple(sentence for sentence in text.certainty_sentences(ranking) if sentence != evidence)
    can_tell, answer = ranking.stability.can_tell, tuple(verdict.answer_sentences(ranking))
    return Page(
        title=f"Where to steer {model}",
        about=(model, task, count(ranking.n_examples, "prompt")),
        headline=verdict.headline(ranking),
        is_sure=verdict.recommends(ranking),
        lead=answer if can_tell else (certainty[0], *answer),
        evidence=evidence,
        next=_next(ranking),
        facts=tuple(_facts(ranking)),
        warnings=tuple(text.warning_sentences(ranking)),
        certainty=certainty if can_tell else certainty[1:],
        proof=_folds(studies_table(ranking)),
        sections=tuple(_sections(ranking, figures)),
        counted=text.counts_sentence(ranking) if ranking.sites else "",
        method=tuple(_method(ranking)),
        command=clean(ranking.settings.command or ""),
        caveats=tuple(text.caveats(ranking)),
        file="ranking.json",
    )


def _next(ranking: Ranking) -> Next | None:
    step = next_step(ranking)
    if step is None:
        return None
    note = "The last trains at many sites in rounds and keeps the adapter that learns most."
    if step.is_open:
        note = "The first trains at many sites in rounds and keeps the adapter that learns most; the others at one."
    elif step.train:
        note = f"The first two train one edit at the cheapest equal choice, from Python or the command line. {note}"
    return Next(f"Next: {step.merging}" if step.merging else "Next", tuple(step.lines), note)


def _facts(ranking: Ranking) -> list[Fact]:
    if not ranking.sites:
        return []
    name = ranking.score
    best, top = ranking.sites[0], text.best_set(ranking)
    is_share = score_words(name).is_share
    found = [
        Fact(
            f"highest {'share' if is_share else 'score'}",
            format_score(best.score, name),
            format_interval(best.ci_low, best.ci_high, name),
            share_bar(best.score, best.ci_low, best.ci_high) if is_share else None,
        )
    ]
    if top is not None and not verdict.is_baseline(ranking):
        found.append(
            Fact(
                f"greedy set of {count(top.step, 'site')}",
                format_score(top.score, ranking.set_score),
                format_interval(top.ci_low, top.ci_high, ranking.set_score) + by_score(ranking, ranking.set_score),
                share_bar(top.score, top.ci_low, top.ci_high) if score_words(ranking.set_score).is_share else None,
            )
        )
    stability = ranking.stability
    note = f"Spearman; threshold {stability.threshold:.2f}{by_score(ranking, stability.score)}"
    found.append(Fact("agreement of two halves", f"{stability.spearman:.2f}", note))
    if verdict.recommends(ranking):
        rows = verdict.Verdict(ranking)
        found.append(
            Fact(
                "equal to the best",
                f"{len(rows.equal) - 1:,}",
                f"of {count(len(rows.rows) - 1, 'other candidate')}; {len(rows.undetermined):,} undetermined, "
                f"{len(rows.worse):,} worse",
            )
        )
    return found


def _sections(ranking: Ranking, figures: Sequence[PageFigure[Ranking]]) -> list[Section]:
    """Return the page's figures, each with its table."""
    every = site_table(ranking, None) if len(candidates(ranking)) > 10 else None
    parts = {
        "predicted_against_trained": _parts(foreseen_table(ranking)),
        "ranking": _parts(site_table(ranking, 10)),
        "kinds_over_depth": _parts(kind_table(ranking, None)),
        "gain_and_cost": _parts(pareto_table(ranking)),
        "greedy_growth": _parts(greedy_table(ranking)),
    }
    scores = Fold("What each score is", (Part(pairs=_scores(ranking)),))
    folds = {
        "ranking": _folds(every),
        "other_scores": (scores,) if ranking.sites else (),
    }
    return [Section(one.heading, one.stem, parts.get(one.stem, ()), folds.get(one.stem, ())) for one in figures]


def _parts(table: TextTable) -> tuple[Part, ...]:
    return (Part(table=table),) if table.rows else ()


def _folds(table: TextTable | None) -> tuple[Fold, ...]:
    return (Fold(table.title, _parts(table)),) if table is not None and table.rows else ()


def _scores(ranking: Ranking) -> Pairs:
    """Return every score of the ranking with its description, the default one first."""
    names = {name for site in ranking.sites for name in site.scores} - {ranking.score}
    return tuple((score_words(name).label, score_words(name).description) for name in [ranking.score, *sorted(names)])


def _sentence(words: object) -> str:
    """Return a description as a sentence."""
    line = clean(words)
    return line[:1].upper() + line[1:] + ("" if line.endswith((".", "!", "?")) else ".")


def _method(ranking: Ranking) -> list[Fold]:
    """Return what was computed, and what the kinds of site are."""
    model = ranking.model
    order = ["name", "revision", "sha256", "layout", "layers", "d_model", "n_params", "dtype", "quantised", "setup"]
    identity = [(key, value) for key in order if (value := getattr(model, key)) not in (None, "")]
    n_fit = prompts_learned_from(ranking)
    outputs, kernels = ranking.outputs, ranking.kernels
    told = asdict(replace(ranking.settings, command=None))  # it stands elsewhere
    settings = [(key, value) for key, value in sorted(told.items()) if value is not None]
    slowest_first = sorted(ranking.timing, key=lambda stage: (-ranking.timing[stage], stage))
    score = score_words(ranking.score)
    data = (
        f"{count(ranking.n_examples, 'prompt')} of {clean(ranking.task, 80)}: {n_fit:,} to learn from, "
        f"{ranking.n_examples - n_fit:,} to measure on.",
        f"The score is the {score.label}: {score.description}.",
    )
    differentiated = _sentence(outputs.description) if outputs.description else ""
    computed = (text.kernel_sentence(ranking), _sentence(kernels.description) if kernels.description else "")
    parts = (
        Part("Data and score", data, pairs=(("seed", str(ranking.seed)),)),
        Part("Outputs", _said(differentiated, text.probe_sentence(ranking), text.mean_sentence(ranking))),
        Part("Kernels", _said(*computed)),
        Part("Model", pairs=setting_pairs(identity)),
        Part("Settings", pairs=setting_pairs(settings)),
        Part("Versions", pairs=tuple((clean(key), clean(value)) for key, value in sorted(ranking.versions.items()))),
        Part("Seconds by stage", pairs=setting_pairs((stage, ranking.timing[stage]) for stage in slowest_first)),
    )
    kept = tuple(part for part in parts if part.sentences or part.pairs)
    found = [Fold("Data, outputs, kernels, model, settings, versions and times", kept)]
    kinds = ordered_kinds(site.kind for site in ranking.sites)
    meanings = tuple((kind, kind_meaning(kind)) for kind in kinds if kind_meaning(kind))
    return [*found, Fold("What each kind of site is", (Part(pairs=meanings),))] if meanings else found


def _said(*sentences: str) -> tuple[str, ...]:
    return tuple(sentence for sentence in sentences if sentence)
