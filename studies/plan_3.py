"""The rule of docs/validation_plan_3.md: which score the tables to choose on nominate, and what the others say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steerscope.analysis.scoring.scores import Needs, get_score
from steerscope.experiments.site_tables.admission import Admission, Criterion
from steerscope.experiments.site_tables.common import common_outcomes
from steerscope.experiments.site_tables.judging import FIXED, JudgedScore, Judgement, judge
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.reports.vocabulary import count

TODAY = "learnable_share"
CANDIDATES = (
    TODAY,
    "converged_share",
    "reading_gain",
    "learned_at_n",
    "in_sample_share",
    "own_direction",
    "predicted_loss",
    "predicted_loss_bounded",
    "alignment",
    "gradient_capture",
)
REPORTING = "smollm2-135m"
# The size that a table has to have: sites, of a small model fewer; kinds at a layer, layers with as many; seeds.
SITES, SITES_OF_SMALL, KINDS, LAYERS, SEEDS = 48, 24, 4, 6, 3
# How much higher J has to be, and how far rho may fall.
HIGHER, LOWER, ALIKE = 0.05, 0.02, 0.01


@dataclass(frozen=True)
class Earned:
    """What a score earns on average over tables: across layers, within them, and both.

    Attributes:
        rho: Spearman correlation with minus the mean test loss.
        within: ``2 right - 1`` over the pairs of sites of one layer that differ.
        both: Their mean.
    """

    rho: float
    within: float
    both: float


@dataclass(frozen=True)
class Decision:
    """What the rule comes to.

    Attributes:
        chosen_on: Names of the admitted tables to choose on.
        reported_on: Names of the admitted tables to report on.
        choosing: What every candidate and fixed baseline earns on the former.
        reporting: The same on the latter.
        nominee: The candidate that is nominated, or None.
        default: The score that is the default from now on.
        baseline: The fixed baseline that is compared with.
        reason: Why, in a sentence.
    """

    chosen_on: tuple[str, ...]
    reported_on: tuple[str, ...]
    choosing: dict[str, Earned]
    reporting: dict[str, Earned]
    nominee: str | None
    default: str
    baseline: str
    reason: str


def judged_by_plan(table: SiteTable) -> Judgement:
    """Judge a table's scores, with the plan's own condition of admission, size, before those of the package.

    Args:
        table: The table.

    Returns:
        The judgement, admitted if all conditions of the plan hold.
    """
    found = judge(table)
    return replace(found, admission=Admission((size_of(table), *found.admission.criteria)))


def size_of(table: SiteTable) -> Criterion:
    """Say whether a table is large enough: sites with all seeds, and layers at which several kinds were trained."""
    common = common_outcomes(table)
    needed = SITES if table.model.name == REPORTING else SITES_OF_SMALL
    kinds = Counter(one.site.layer for one in common.outcomes)
    full, layers = sum(number >= KINDS for number in kinds.values()), min(LAYERS, table.num_layers)
    sites, seeds = len(common.outcomes), len(common.seeds)
    holds = sites >= needed and full >= layers and seeds >= SEEDS
    return Criterion(
        "size",
        float(sites),
        float(needed),
        holds,
        f"{sites} sites with {count(seeds, 'seed')}, at least {KINDS} kinds at {count(full, 'layer')}; needed: "
        f"{needed} sites, {SEEDS} seeds, {layers} layers.",
    )


def decide(judged: Sequence[tuple[str, Judgement]]) -> Decision:
    """Follow the rule.

    Args:
        judged: Per table the name of its model, and what it says of scores.

    Returns:
        The decision, with its reason.
    """
    choose = [one for model, one in judged if one.admission.holds and model != REPORTING]
    report = [one for model, one in judged if one.admission.holds and model == REPORTING]
    choosing, reporting = earned_over(choose), earned_over(report)
    baseline = max(FIXED, key=lambda name: choosing[name].both if name in choosing else 0.0)

    def decided(nominee: str | None, default: str, reason: str) -> Decision:
        names = tuple(one.table for one in choose), tuple(one.table for one in report)
        return Decision(*names, choosing, reporting, nominee, default, baseline, reason)

    if not choose:
        return decided(None, TODAY, "No table to choose on is admitted, so nothing changes.")
    nominee = _nominee(choosing)
    if nominee is None:
        return decided(None, TODAY, f"No candidate beats `{TODAY}` by the rule, so it stays.")
    if not report:
        return decided(
            nominee, TODAY, f"`{nominee}` is nominated; no table to report on is admitted, so `{TODAY}` stays."
        )
    new, old = reporting[nominee].both, reporting[TODAY].both
    more = "more" if new > old else "no more"
    reason = f"`{nominee}` is nominated and earns {more} where it counts: {new:.2f} to {old:.2f}."
    return decided(nominee, nominee if new > old else TODAY, reason)


def earned_over(judgements: Sequence[Judgement]) -> dict[str, Earned]:
    """Return what candidates and fixed baselines earn on average; scores that a table lacks are left out.

    Args:
        judgements: One per table; each counts once.
    """
    found = {}
    for name in (*CANDIDATES, *FIXED):
        own = [one.scores[name] for one in judgements if name in one.scores]
        if judgements and len(own) == len(judgements):
            parts = np.array([earned(score) for score in own]).mean(0)
            found[name] = Earned(*map(float, parts))
    return found


def earned(score: JudgedScore) -> tuple[float, float, float]:
    """Return ``rho``, ``W`` and ``J`` of one score on one table; ``W`` is 0 without a pair."""
    within = 0.0 if score.pairs.share is None else 2 * score.pairs.share.value - 1
    return score.agreement.spearman, within, score.both.value.value


def _nominee(choosing: Mapping[str, Earned]) -> str | None:
    today = choosing[TODAY]
    able = [
        name
        for name, one in choosing.items()
        if name not in (TODAY, *FIXED)
        and one.both >= today.both + HIGHER
        and one.rho >= today.rho - LOWER
        and one.within >= today.within
    ]
    if not able:
        return None
    best = max(choosing[name].both for name in able)
    near = [name for name in able if choosing[name].both >= best - ALIKE]
    return min(near, key=lambda name: (get_score(name).needs is not Needs.KERNEL, CANDIDATES.index(name)))
