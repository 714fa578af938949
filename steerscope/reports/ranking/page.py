"""The page: one self-contained HTML file with the figures inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerscope.analysis.results import Ranking
from steerscope.reports.page_folder import PageFigure, render, table_values
from steerscope.reports.ranking import text, verdict
from steerscope.reports.ranking.candidates import candidates, prompts_learned_from
from steerscope.reports.ranking.next_step import next_step
from steerscope.reports.ranking.tables import by_score, greedy_table, kind_table, site_table, studies_table
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

_TEMPLATE = Path(__file__).parent / "index.html.jinja"


def render_page(ranking: Ranking, figures: Sequence[tuple[PageFigure[Ranking], bytes]]) -> str:
    """Return the page as HTML.

    Args:
        ranking: The ranking to report.
        figures: The figures in the order of the page, each with its SVG.

    Returns:
        One HTML document that loads nothing: styles are inlined and figures are data URIs. Every string of the
        ranking is escaped.
    """
    return render(
        _TEMPLATE,
        figures,
        model=clean(ranking.model.get("name", "unnamed model"), 80),
        task=clean(ranking.task, 80),
        n_examples=count(ranking.n_examples, "prompt"),
        headline=verdict.headline(ranking),
        recommends=verdict.recommends(ranking),
        can_tell=ranking.stability.can_tell,
        answer=verdict.answer_sentences(ranking),
        evidence=text.evidence_sentence(ranking),
        studies=_table(studies_table(ranking)),
        step=next_step(ranking),
        counts=text.counts_sentence(ranking) if ranking.sites else "",
        facts=_facts(ranking),
        certainty=[s for s in text.certainty_sentences(ranking) if s != text.evidence_sentence(ranking)],
        warnings=text.warning_sentences(ranking),
        foreseen=_table(foreseen_table(ranking)),
        top=_table(site_table(ranking, 10)),
        every=_table(site_table(ranking, None)) if len(candidates(ranking)) > 10 else None,
        kinds=_table(kind_table(ranking, None)),
        greedy=_table(greedy_table(ranking)),
        scores=_scores(ranking),
        meanings=_meanings(ranking),
        method=_method(ranking),
        command=clean(ranking.settings["command"]) if ranking.settings.get("command") else "",
        caveats=text.caveats(ranking),
    )


def _facts(ranking: Ranking) -> list[dict[str, Any]]:
    """Return the key numbers; ``low``, ``high`` and ``at`` are percentages of the bar under a share."""
    if not ranking.sites:
        return []
    name = ranking.score
    best, top = ranking.sites[0], text.best_set(ranking)
    is_share = score_words(name).is_share
    noun = "share" if is_share else "score"
    found: list[dict[str, Any]] = [
        {
            "label": f"highest {noun}",
            "value": format_score(best.score, name),
            "note": format_interval(best.ci_low, best.ci_high, name),
            "bar": _bar(best.score, best.ci_low, best.ci_high) if is_share else None,
        }
    ]
    if top is not None and not verdict.is_baseline(ranking):
        is_set_share = score_words(ranking.set_score).is_share
        found.append(
            {
                "label": f"greedy set of {count(top.step, 'site')}",
                "value": format_score(top.score, ranking.set_score),
                "note": format_interval(top.ci_low, top.ci_high, ranking.set_score)
                + by_score(ranking, ranking.set_score),
                "bar": _bar(top.score, top.ci_low, top.ci_high) if is_set_share else None,
            }
        )
    rows, stability = verdict.Verdict(ranking), ranking.stability
    found.append(
        {
            "label": "agreement of two halves",
            "value": f"{stability.spearman:.2f}",
            "note": f"Spearman; threshold {stability.threshold:.2f}{by_score(ranking, stability.score)}",
            "bar": None,
        }
    )
    if verdict.recommends(ranking):
        found.append(
            {
                "label": "equal to the best",
                "value": f"{len(rows.equal) - 1:,}",
                "note": f"of {count(len(rows.rows) - 1, 'other candidate')}; {len(rows.undetermined):,} undetermined, "
                f"{len(rows.worse):,} worse",
                "bar": None,
            }
        )
    return found


def _bar(value: float, low: float, high: float) -> dict[str, str]:
    """Return a share and its interval as CSS percentages of a bar from 0 to 100%."""
    at, left, right = (min(max(100 * number, 0.0), 100.0) for number in (value, low, high))
    return {"at": f"{at:.1f}", "low": f"{left:.1f}", "width": f"{right - left:.1f}"}


def _table(table: TextTable) -> dict[str, Any] | None:
    """Return a table for the template, or ``None`` without rows."""
    return table_values(table) if table.rows else None


def _scores(ranking: Ranking) -> list[tuple[str, str]]:
    """Return every score of the ranking with its description, the default one first."""
    names = {name for site in ranking.sites for name in site.scores} - {ranking.score}
    return [(score_words(name).label, score_words(name).description) for name in [ranking.score, *sorted(names)]]


def _meanings(ranking: Ranking) -> list[tuple[str, str]]:
    """Return what each kind of site of this model is."""
    kinds = ordered_kinds(site.kind for site in ranking.sites)
    return [(kind, kind_meaning(kind)) for kind in kinds if kind_meaning(kind)]


def _value(value: object) -> str:
    """Write a setting as text; mappings in sorted order, because a trip through JSON sorts them too.

    Returns:
        One line.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(key)} {_value(item)}" for key, item in sorted(value.items())) or "none"
    return "none" if value is None else clean(value)


def _sentence(words: object) -> str:
    """Return a description as a sentence."""
    line = clean(words)
    return line[:1].upper() + line[1:] + ("" if line.endswith((".", "!", "?")) else ".")


def _pairs(items: Iterable[tuple[str, object]]) -> list[tuple[str, str]]:
    """Return named values as printed pairs."""
    names = {"n_params": "parameters", "d_model": "width", "quantised": "weights"}
    return [(names.get(name) or clean(name).replace("_", " "), _value(value)) for name, value in items]


def _method(ranking: Ranking) -> list[tuple[str, list[str], list[tuple[str, str]]]]:
    """Return the method box: heading, sentences and named values of each part."""
    model = ranking.model
    order = ["name", "revision", "sha256", "layout", "layers", "d_model", "n_params", "dtype", "quantised"]
    identity = [(key, model[key]) for key in order if model.get(key) is not None]
    identity += [(key, model[key]) for key in sorted(set(model) - set(order))]
    n_fit = prompts_learned_from(ranking)
    outputs, kernels = ranking.outputs, ranking.kernels
    settings = [(key, ranking.settings[key]) for key in sorted(ranking.settings) if key != "command"]
    slowest_first = sorted(ranking.timing, key=lambda stage: (-ranking.timing[stage], stage))
    score = score_words(ranking.score)
    data = [
        f"{count(ranking.n_examples, 'prompt')} of {clean(ranking.task, 80)}: {n_fit:,} to learn from, "
        f"{ranking.n_examples - n_fit:,} to measure on.",
        f"The score is the {score.label}: {score.description}.",
    ]
    differentiated = [_sentence(outputs["description"])] if outputs.get("description") else []
    described = [_sentence(kernels["description"])] if kernels.get("description") else []
    parts: list[tuple[str, list[str], list[tuple[str, str]]]] = [
        ("Data and score", data, [("seed", str(ranking.seed))]),
        ("Outputs", [*differentiated, text.probe_sentence(ranking), text.mean_sentence(ranking)], []),
        ("Kernels", [text.kernel_sentence(ranking) if kernels else "", *described], []),
        ("Model", [], _pairs(identity)),
        ("Settings", [], _pairs(settings)),
        ("Versions", [], [(clean(key), clean(value)) for key, value in sorted(ranking.versions.items())]),
        ("Seconds by stage", [], _pairs((stage, ranking.timing[stage]) for stage in slowest_first)),
    ]
    kept = [(heading, [line for line in lines if line], pairs) for heading, lines, pairs in parts]
    return [part for part in kept if part[1] or part[2]]
