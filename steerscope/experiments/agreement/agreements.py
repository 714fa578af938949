"""How well scores predicted trained outcomes: rank correlations with their uncertainty, regret, margins over baselines.

Everything is computed from two tables: scores ``site`` and trained held-out losses ``site seed``. A higher score
should go with a lower loss, so correlations are those of the score with minus the mean loss over seeds. A run that
diverged has an infinite loss: it counts as the worst. Intervals are those of :class:`LayerBootstrap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerscope.experiments.agreement.attainable import attainable_correlation, drawn_two_seeds, two_seeds_of
from steerscope.experiments.agreement.correlations import (
    Array,
    finite_losses,
    kendall_of,
    pair_signs,
    partial_of,
    partial_spearman,
    spearman_or_zero,
    unit_ranks,
)
from steerscope.experiments.agreement.layer_bootstrap import Estimate, LayerBootstrap, without_each_seed
from steerscope.experiments.agreement.regret import regret_of


@dataclass(frozen=True)
class Agreement:
    """How one score fared.

    Attributes:
        score: Its name.
        spearman: Rank correlation with minus the mean loss over seeds; ``low`` and ``high`` bound its 95% interval.
        kendall: Kendall's tau-b, with its interval.
        partial: Spearman correlation given depth, with its interval.
        regret: Loss at the site that the score puts first, minus the loss at the best site, in nats; the mean over
            the sites that share the first place.
        regret_share: The same as a part of what the best site gains over no training.
        top3: How many of the three sites that the score puts first are among the three best.
        margin: Spearman minus that of the best plain baseline, with its interval, for which the best one is picked
            again in every resample; all 0 for the best baseline itself.
        margins: Spearman minus that of every other baseline, fixed in advance, with its interval.
        of_attainable: Spearman as a part of the attainable correlation, with its interval; None from one seed, or where
            nothing is attainable.
    """

    score: str
    spearman: float
    low: float
    high: float
    kendall: float
    kendall_low: float
    kendall_high: float
    partial: float
    partial_low: float
    partial_high: float
    regret: float
    regret_share: float
    top3: int
    margin: float = 0.0
    margin_low: float = 0.0
    margin_high: float = 0.0
    margins: dict[str, Estimate] = field(default_factory=dict)
    of_attainable: Estimate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)


def agreements(
    scores: Mapping[str, Array],
    losses: Array,
    layers: NDArray[np.int64],
    *,
    before: float,
    baselines: Sequence[str],
    seed: int,
) -> dict[str, Agreement]:
    """Compare every score with trained losses.

    Args:
        scores: Per name ``site``; higher should be better.
        losses: ``site seed``, held-out, in nats.
        layers: ``site``: the layer.
        before: The loss without any training.
        baselines: Names of the plain baselines among ``scores``.
        seed: Seed of the bootstrap.

    Returns:
        Per score its agreement.
    """
    table = finite_losses(losses)
    mean = table.mean(1)
    others = without_each_seed(table, layers, seed) if table.shape[1] > 1 else []
    depth = layers.astype(np.float64)
    bootstrap = LayerBootstrap(layers, seed)
    outcome, place = bootstrap.ranks(-mean), bootstrap.ranks(depth)
    by_place = bootstrap.correlations(outcome, place)
    attained = _drawn_attainable(table, bootstrap)

    # Outcomes with each seed left out ``1 + shuffle, seed, site``, and as ranks.
    without = np.array([[-one.mean(1) for one in own] for own in others]) if others else None
    ranked = None if without is None else unit_ranks(without)
    signs = None if without is None else pair_signs(without)

    known = [name for name in baselines if name in scores]
    whole = {name: spearman_or_zero(score, -mean) for name, score in scores.items()}
    ranks = {name: bootstrap.ranks(score) for name, score in scores.items()}
    drawn = {name: bootstrap.correlations(own, outcome) for name, own in ranks.items()}
    jack = {name: None if ranked is None else ranked @ unit_ranks(score) for name, score in scores.items()}
    deep = None if ranked is None else ranked @ unit_ranks(depth)

    def margin(name: str, over: Sequence[str]) -> Estimate:
        """Return a score minus the best of some baselines, which is picked again wherever something is left out."""
        best = max(whole[one] for one in over)
        resampled = drawn[name] - np.max([drawn[one] for one in over], axis=0)
        own = jack[name]
        seeds = None if own is None else own - np.max([jack[one] for one in over], axis=0)  # type: ignore[arg-type]
        return bootstrap.number(whole[name] - best, resampled, seeds).within(-2.0, 2.0)

    out = {}
    for name, score in scores.items():
        plain = bootstrap.correlation(whole[name], drawn[name], jack[name])
        tau = bootstrap.correlation(
            float(kendall_of(pair_signs(score), pair_signs(-mean))),
            bootstrap.kendall(score, -mean),
            None if signs is None else kendall_of(pair_signs(score), signs),
        )
        given = bootstrap.correlation(
            partial_spearman(score, -mean, depth),
            partial_of(drawn[name], bootstrap.correlations(ranks[name], place), by_place),
            _partial_without(jack[name], np.array(unit_ranks(score) @ unit_ranks(depth)), deep),
        )
        best = max(known, key=lambda one: whole[one], default=None)
        over = Estimate(0.0, 0.0, 0.0) if best is None or name == best else margin(name, known)
        regret = regret_of(score, mean, 1)
        tops = set(np.argsort(-score, kind="stable")[:3].tolist()) & set(np.argsort(mean, kind="stable")[:3].tolist())
        out[name] = Agreement(
            score=name,
            spearman=plain.value,
            low=plain.low,
            high=plain.high,
            kendall=tau.value,
            kendall_low=tau.low,
            kendall_high=tau.high,
            partial=given.value,
            partial_low=given.low,
            partial_high=given.high,
            regret=regret,
            regret_share=regret / max(before - float(mean.min()), 1e-9),
            top3=len(tops),
            margin=over.value,
            margin_low=over.low,
            margin_high=over.high,
            margins={one: margin(name, [one]) for one in known if one != name},
            of_attainable=_part(whole[name], drawn[name], attained, bootstrap),
        )
    return out


def _partial_without(xy: Array | None, xz: Array, yz: Array | None) -> Array | None:
    """Return partial correlations with seeds left out; None where there is one seed."""
    return None if xy is None or yz is None else partial_of(xy, xz, yz)


def _drawn_attainable(table: Array, bootstrap: LayerBootstrap) -> tuple[float, Array] | None:
    """Return the attainable correlation of all sites and of every resample; None where there is none to speak of."""
    num_seeds = table.shape[1]
    if num_seeds < 2:
        return None
    whole = attainable_correlation(two_seeds_of(table), num_seeds)
    drawn = np.array([attainable_correlation(float(r), num_seeds) for r in drawn_two_seeds(table, bootstrap)])
    return (whole, drawn) if whole > 0 else None


def _part(
    value: float, drawn: Array, attained: tuple[float, Array] | None, bootstrap: LayerBootstrap
) -> Estimate | None:
    if attained is None:
        return None
    whole, resampled = attained
    # Linearised, since a resample's attainable correlation can be 0: the ratio varies as its numerator does, less the
    # denominator's part of it.
    found = bootstrap.number(value / whole, (drawn - value / whole * resampled) / whole)
    return found.within(-1 / whole, 1 / whole)
