"""How scores fared on a site table, as tables and sentences."""

from __future__ import annotations

from steerscope.experiments.agreement.layer_bootstrap import Estimate
from steerscope.experiments.site_tables.judging import DEPTH, DEPTH_THEN_KIND, JudgedScore, Judgement
from steerscope.reports.tables import TextTable
from steerscope.reports.vocabulary import clean, score_words


def score_table(result: Judgement, limit: int | None = None) -> TextTable:
    """Return one row per score, best first; the baselines fixed in advance are always there.

    Args:
        result: The judgement.
        limit: Most rows.

    Returns:
        The table.
    """
    order = sorted(result.scores, key=lambda name: -result.scores[name].agreement.spearman)
    places = {name: str(place) for place, name in enumerate(order, 1)}
    if limit is not None and len(order) > limit:
        must = [name for name in (DEPTH, DEPTH_THEN_KIND) if name in order]
        kept = {*[name for name in order if name not in must][: limit - len(must)], *must}
        order = [name for name in order if name in kept]
    columns = ("rank", "score", "Spearman", "part", "over depth+kind", "pairs right", "regret")
    rows = tuple(
        (
            places[name],
            score_words(name).label + _mark(name, result),
            interval(spearman_of(one)),
            "-" if one.agreement.of_attainable is None else f"{one.agreement.of_attainable.value:.2f}",
            "-" if name == DEPTH_THEN_KIND else signed(one.agreement.margins[DEPTH_THEN_KIND]),
            share_of_pairs(one),
            f"{one.regrets[0].loss:.3f}",
        )
        for name in order
        for one in (result.scores[name],)
    )
    left = len(result.scores) - len(rows)
    return TextTable(
        "Scores against trained loss",
        columns,
        frozenset(columns) - {"score"},
        rows,
        "Spearman correlation with minus the mean test loss, [95% interval] over layers; part: of the attainable one. "
        "* plain baseline; ** real training. Pairs: sites of one layer, chance 50%. Regret: of the score's first "
        "site, nats." + (f" {left} more scores: --json." if left else ""),
    )


def _mark(name: str, result: Judgement) -> str:
    """Return what tells plain baselines, and losses after real steps of training, from scores."""
    return " **" if name in result.trained else " *" if name in result.baselines else ""


def full_table(result: Judgement) -> TextTable:
    """Return one row per score with everything: what a page has room for."""
    order = sorted(result.scores, key=lambda name: -result.scores[name].agreement.spearman)
    columns = (
        "rank", "score", "Spearman", "given depth", "Kendall", "of attainable", "over depth", "over depth+kind",
        "over best baseline", "pairs right", "J", "J over depth+kind", "regret 1 / 3 / 5 (nats)", "(points)",
    )  # fmt: skip
    rows = []
    for rank, name in enumerate(order, 1):
        one = result.scores[name]
        own = one.agreement
        rows.append(
            (
                str(rank),
                f"`{clean(name, 60)}`" + _mark(name, result),
                interval(spearman_of(one)),
                interval(Estimate(own.partial, own.partial_low, own.partial_high)),
                interval(Estimate(own.kendall, own.kendall_low, own.kendall_high)),
                "-" if own.of_attainable is None else interval(own.of_attainable),
                "-" if name == DEPTH else signed(own.margins[DEPTH]),
                "-" if name == DEPTH_THEN_KIND else signed(own.margins[DEPTH_THEN_KIND]),
                _over_best(one),
                share_of_pairs(one),
                interval(one.both.value),
                "-" if name == DEPTH_THEN_KIND else signed(one.both.margins[DEPTH_THEN_KIND]),
                " / ".join(f"{regret.loss:.3f}" for regret in one.regrets),
                " / ".join(f"{100 * regret.accuracy:.1f}" for regret in one.regrets),
            )
        )
    return TextTable("Scores against trained loss", columns, frozenset(columns) - {"score"}, tuple(rows))


def admission_table(result: Judgement) -> TextTable:
    """Return the criteria of the rule of admission."""
    rows = tuple(
        ("yes" if one.holds else "no" if one.value is not None else "not known", one.name, one.sentence)
        for one in result.admission.criteria
    )
    return TextTable("May it judge scores?", ("holds", "criterion", "what was found"), frozenset(), rows)


def attainable_sentence(result: Judgement) -> str:
    """Say what a perfect score would have."""
    found = result.attainable
    if found.spearman is None:
        return "What correlation a perfect score would have is not known from one seed."
    return (
        f"A perfect score would have Spearman {found.spearman:.2f} [{found.low:.2f}, {found.high:.2f}]: two of the "
        f"{found.num_seeds} seeds agree at {found.two_seeds:.2f}."
    )


def pairs_sentence(result: Judgement) -> str:
    """Say how many pairs within layers can be asked about."""
    return (
        f"{result.num_pairs} of {result.num_all_pairs} pairs of sites of one layer differ by more than noise; which of "
        "two is better, depth cannot say."
    )


def share_of_pairs(one: JudgedScore) -> str:
    """Write which part of the pairs is right, with its interval.

    Returns:
        A percentage, or ``-`` without pairs.
    """
    share = one.pairs.share
    return "-" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def spearman_of(one: JudgedScore) -> Estimate:
    """Return a score's Spearman correlation with its interval."""
    return Estimate(one.agreement.spearman, one.agreement.low, one.agreement.high)


def interval(found: Estimate) -> str:
    """Write a value with its interval."""
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def signed(found: Estimate) -> str:
    """Write a difference with its interval."""
    return f"{found.value:+.2f} [{found.low:.2f}, {found.high:.2f}]"


def _over_best(one: JudgedScore) -> str:
    own = one.agreement
    if own.margin == own.margin_low == own.margin_high == 0:
        return "is the best"
    return signed(Estimate(own.margin, own.margin_low, own.margin_high))
