"""What training says of the score of a ranking: on its model and task if they were trained at, else elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerscope.analysis.evidence import is_of, ranked_alike
from steerscope.analysis.results import Ranking
from steerscope.reports.tables import TextTable
from steerscope.reports.vocabulary import clean, count, listing

NOT_VALIDATED = "The score has not yet been validated by training on this model."
TABLES = "docs/site_tables.md"
_HYPOTHESIS = "a hypothesis, which steerscope sweep or validate tests"

Line = Mapping[str, Any]


def evidence_sentence(ranking: Ranking) -> str:
    """Say what training says about the score: on this model and task, else elsewhere.

    Tables that may not judge scores are said to be there, with the reason and their best sites: what was trained was
    trained, whatever it proves of a score.

    Returns:
        One to three sentences.
    """
    evidence = ranking.evidence
    if evidence is None:
        return f"{NOT_VALIDATED} It is a prediction."
    if not evidence.studies:
        return clean(evidence.summary or "Validation by training left no summary.")
    lines = _alike(ranking)
    own = [one for one in lines if is_of(one, ranking.model, ranking.settings.drawn_from)]
    others = [one for one in lines if one not in own and _may_judge(one)]
    if not own:
        return f"Not trained on this model and task. {_elsewhere(ranking, others)}"
    best = max(own, key=lambda one: (_may_judge(one), int(one["n_sites"])))
    if _may_judge(best):
        return _trained(ranking, best)
    return f"{_not_admitted(best)} {_elsewhere(ranking, others)}"


def studies_table(ranking: Ranking) -> TextTable:
    """Return the tables of trained outcomes that the score was compared with; no rows where the evidence holds none."""
    return TextTable(
        title="Trainings that this score was compared with",
        columns=("model", "task", "sites", "directions", "Spearman", "95% interval", "attainable", "plain baseline",
                 "may judge"),
        right=frozenset({"sites", "directions", "Spearman", "95% interval", "attainable"}),
        rows=tuple(
            (
                clean(one["model"], 24),
                clean(one["task"], 24),
                f"{one['n_sites']:,}",
                str(one.get("n_probes") or "not kept"),
                f"{one['spearman']:.2f}",
                f"{one['low']:.2f} to {one['high']:.2f}",
                "" if one["attainable"] is None else f"{one['attainable']:.2f}",
                f"{clean(one['baseline'], 24)} {one['baseline_spearman']:.2f}",
                "yes" if _may_judge(one) else "no",
            )
            for one in _alike(ranking)
        ),
        note="Spearman correlation of the score with trained held-out loss; directions: output directions per prompt "
        "in the ranking that was compared; attainable: what a perfect score would have, given how well training seeds "
        f"agree; may judge: by a rule fixed before training. {TABLES} has the tables, and why some may not.",
    )  # fmt: skip


def _alike(ranking: Ranking) -> list[Line]:
    """Return a line per table, that of the ranking most like this one."""
    studies = () if ranking.evidence is None else ranking.evidence.studies
    return ranked_alike(studies, ranking.outputs.n_probes)


def _may_judge(line: Line) -> bool:
    """Say whether a table may judge scores; before this was kept, only those that may were cited."""
    return bool(line.get("admitted", True))


def _trained(ranking: Ranking, one: Line) -> str:
    limits = f"{one['spearman']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
    sure = "" if one["low"] > 0 else ", not surely better than chance"
    pairs = ""
    if (share := one.get("pairs")) is not None and one.get("pairs_low") is not None:
        chance = "" if one["pairs_low"] > 0.5 else ", not surely more than chance"
        pairs = (
            f"; of two sites of one layer it names the better in {100 * share:.0f}% "
            f"({100 * one['pairs_low']:.0f}% to {100 * one['pairs_high']:.0f}%{chance})"
        )
    return (
        f"Trained at {count(one['n_sites'], 'site')} of this model on this task, the order agreed with the losses "
        f"at Spearman {limits}{sure}; {clean(one['baseline'])} alone reached {one['baseline_spearman']:.2f}{pairs}"
        f"{_other_directions(ranking, [one])} ({TABLES})."
    )


def _not_admitted(one: Line) -> str:
    best = [f"{clean(site['site'], 24)} ({100 * site['accuracy']:.0f}% right)" for site in one["best"]]
    return (
        f"Trained at {count(one['n_sites'], 'site')} of this model on this task: the best were {listing(best)}, "
        f"untrained {100 * one['before']['accuracy']:.0f}%. That table may not judge scores: "
        f"{clean(one['why_not'], 400)}"
    )


def _elsewhere(ranking: Ranking, others: Sequence[Line]) -> str:
    if not others:
        return f"No table of trained outcomes may judge this score yet ({TABLES}): {_HYPOTHESIS}."
    sure = sum(one["low"] > 0 for one in others)
    return (
        f"Elsewhere the order was surely better than chance in {sure} of {count(len(others), 'table')} of trained "
        f"outcomes that may judge scores{_other_directions(ranking, others)} ({TABLES}): {_HYPOTHESIS}."
    )


def _other_directions(ranking: Ranking, lines: Sequence[Line]) -> str:
    """Say with how many output directions sites were ranked there, where this ranking took another number."""
    here, there = ranking.outputs.n_probes, sorted({one["n_probes"] for one in lines if one.get("n_probes")})
    if there in ([], [here]):
        return ""
    return f", ranked there with {listing([str(number) for number in there])} output directions, here with {here}"
