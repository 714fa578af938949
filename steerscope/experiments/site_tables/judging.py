"""Judge scores of sites by a table of trained outcomes: one score or many, without training anything.

table = SiteTable.load("table.json")
print(judge(table, {"mine": {site: my_score(site) for site in sites_of(table)}}))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steerscope.analysis.scoring.scores import all_scores
from steerscope.analysis.scoring.scores.places import layer_then_kind
from steerscope.analysis.shown import Shown
from steerscope.errors import InputError
from steerscope.experiments.agreement.across_and_within import AcrossAndWithin, across_and_within
from steerscope.experiments.agreement.agreements import Agreement, agreements
from steerscope.experiments.agreement.attainable import Attainable, attainable
from steerscope.experiments.agreement.correlations import Array, finite_losses
from steerscope.experiments.agreement.layer_pairs import PairsRight, layer_pairs, pairs_right
from steerscope.experiments.agreement.regret import regret_of
from steerscope.experiments.site_tables.admission import Admission
from steerscope.experiments.site_tables.admitted import admitted
from steerscope.experiments.site_tables.common import Common, common_outcomes, score_array
from steerscope.experiments.site_tables.first_steps import first_steps
from steerscope.experiments.site_tables.table import SiteTable
from steerscope.records import Record

# Baselines that every score is compared with, fixed before anything was trained: no look at any outcome picked them.
DEPTH, DEPTH_THEN_KIND = "depth", "depth_then_kind"
FIXED = (DEPTH, DEPTH_THEN_KIND)
FIRST = (1, 3, 5)
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Regret:
    """What is lost by training only at a score's first sites.

    Attributes:
        first: How many of them; the best of these is kept.
        loss: Test loss there minus that of the table's best site, nats.
        loss_share: The same as a part of what the best site gains over no training; None if it gains nothing.
        accuracy: Test accuracy of the most accurate site of all minus that of these.
        accuracy_share: The same as a part of the most accurate site's gain; None if it gains nothing.
    """

    first: int
    loss: float
    loss_share: float | None
    accuracy: float
    accuracy_share: float | None


@dataclass(frozen=True)
class JudgedScore:
    """How one score fared on a table.

    Attributes:
        agreement: Rank correlations and margins over baselines.
        pairs: Pairs of sites of one layer in the right order.
        both: One number of the two: J = (Spearman + 2 right - 1) / 2.
        regrets: For each of :data:`FIRST`.
    """

    agreement: Agreement
    pairs: PairsRight
    both: AcrossAndWithin
    regrets: tuple[Regret, ...]


@dataclass(frozen=True, repr=False)
class Judgement(Record, Shown, what="judgement of scores", sign="admission", report="site_tables"):
    """What a table says of scores.

    Attributes:
        table: Model and task.
        num_sites: Sites that were tested with all of the seeds.
        num_left_out: Other sites of the table.
        num_layers: Their layers.
        num_seeds: Seeds.
        admission: Whether the table may judge scores.
        attainable: What correlation its noise leaves attainable.
        scores: By name.
        baselines: Names of the plain baselines among them.
        num_pairs: Pairs of sites of one layer that differ by more than noise.
        num_all_pairs: All pairs of sites of one layer.
        trained: Names of those among the scores that are losses after a few steps of real training.
    """

    table: str
    num_sites: int
    num_left_out: int
    num_layers: int
    num_seeds: int
    admission: Admission
    attainable: Attainable
    scores: dict[str, JudgedScore]
    baselines: tuple[str, ...]
    num_pairs: int
    num_all_pairs: int
    trained: tuple[str, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    def records(self) -> list[dict[str, Any]]:
        """Return one row per score: an :class:`Agreement`'s numbers, pairs of one layer, J, and what the score is."""
        return [
            {name: value for name, value in one.agreement.as_dict().items() if name not in ("margins", "of_attainable")}
            | {
                "of_attainable": None if one.agreement.of_attainable is None else one.agreement.of_attainable.value,
                "pairs_right": None if one.pairs.share is None else one.pairs.share.value,
                "across_and_within": one.both.value.value,
                "is_baseline": name in self.baselines,
                "is_trained": name in self.trained,
            }
            for name, one in self.scores.items()
        ]


@dataclass(frozen=True)
class Judgements(Record, what="set of judgements", sign="judgements"):
    """What one or several tables say of scores, as ``steerscope score-sites`` writes it."""

    judgements: tuple[Judgement, ...]
    schema_version: int = 1


def judge(table: SiteTable, scores: Mapping[str, Mapping[str, float]] | None = None, *, seed: int = 0) -> Judgement:
    """Compare scores with what training at the table's sites came to.

    Args:
        table: The table.
        scores: Per score, its value by site, higher for a better site; without them those that the table holds. The
            baselines ``depth`` and ``depth_then_kind`` are always added, and a score under their names is not taken;
            so is the loss after 1, 4 and 8 steps of real training, which is no plain baseline and enters no "best" of
            them.
        seed: Of the bootstrap.

    Returns:
        Agreement of each score with the trained losses, with intervals, differences from the baselines, and regret.

    Raises:
        InputError: Too few tested sites, or a score without a finite value for one of them.

    Cost: about a second per ten scores and hundred sites.

    Example:
        >>> from steerscope.experiments.site_tables.table import Base, SiteRun
        >>> from steerscope.experiments.site_tables.table_parts import TableData, TableSchedule, TrainedEdit
        >>> from steerscope.model_identity import ModelIdentity
        >>> losses = {f"{layer}.{kind}": 1 + layer / 10 for layer in range(6) for kind in ("mlp_out", "resid_post")}
        >>> runs = tuple(
        ...     SiteRun(site, 0.01, seed, 10, loss, 0.5, loss, 0.5, (2.0,) * 10, 1.0)
        ...     for site, loss in losses.items()
        ...     for seed in (0, 1)
        ... )
        >>> table = SiteTable(
        ...     model=ModelIdentity("small", None, "0" * 64, 6, None, "sequential", 16, 20_000, "float32"),
        ...     task="sums",
        ...     edit=TrainedEdit("linear", rank=8),
        ...     schedule=TableSchedule(steps=10, batch_size=4),
        ...     dtype="float32",
        ...     data=TableData(test="abc", num_test=100, num_selection=100),
        ...     base=Base(2.4, 0.1, 0.1, 2.3, 0.1, 1.1),
        ...     runs=runs,
        ...     versions={},
        ... )
        >>> judgement = judge(table, {"mine": {site: -loss for site, loss in losses.items()}})
        >>> judgement.num_sites, sorted(judgement.scores)
        (12, ['depth', 'depth_then_kind', 'loss_after_1', 'loss_after_4', 'loss_after_8', 'mine'])
        >>> round(judgement.scores["mine"].agreement.spearman, 6)
        1.0
    """
    common = common_outcomes(table)
    given = table.scores if scores is None else scores
    if scores is not None and (taken := sorted(set(FIXED) & set(scores))):
        raise InputError(f"{taken[0]!r} is the name of a baseline that is always there; name the score otherwise.")
    arrays = {name: score_array(name, own, common.sites) for name, own in given.items() if name not in FIXED}
    fixed = fixed_baselines(common)
    trained = {name: own for name, own in first_steps(table, common).items() if name not in arrays}
    arrays |= trained | fixed
    known = {score.name for score in all_scores() if score.is_baseline} | set(FIXED)
    baselines = tuple(name for name in arrays if name in known)
    losses, layers = common.losses, common.layers
    found = agreements(arrays, losses, layers, before=table.base.loss, baselines=baselines, seed=seed)
    pairs = layer_pairs(losses, layers)
    both = across_and_within(arrays, losses, layers, pairs, fixed=FIXED, seed=seed)
    return Judgement(
        table=table.name,
        num_sites=len(common.sites),
        num_left_out=common.num_left_out,
        num_layers=len(np.unique(layers)),
        num_seeds=len(common.seeds),
        admission=admitted(table, seed=seed),
        attainable=attainable(losses, layers, seed=seed),
        scores={
            name: JudgedScore(
                found[name],
                pairs_right(own, pairs, {other: base for other, base in fixed.items() if other != name}),
                both[name],
                tuple(_regret(own, common, table, first) for first in FIRST),
            )
            for name, own in arrays.items()
        },
        baselines=baselines,
        num_pairs=len(pairs),
        num_all_pairs=pairs.num_all,
        trained=tuple(trained),
    )


def fixed_baselines(common: Common) -> dict[str, Array]:
    """Return the baselines fixed in advance ``site``: the layer, and the layer with a fixed order of kinds."""
    sites = [one.site for one in common.outcomes]
    return {
        DEPTH: -common.layers.astype(np.float64),
        DEPTH_THEN_KIND: np.array([layer_then_kind(site) for site in sites]),
    }


def sites_of(table: SiteTable) -> tuple[str, ...]:
    """Return the sites that a score is judged on."""
    return common_outcomes(table).sites


def _regret(score: Array, common: Common, table: SiteTable, first: int) -> Regret:
    losses, wrong = finite_losses(common.losses).mean(1), 1 - common.accuracies.mean(1)
    loss, accuracy = regret_of(score, losses, first), regret_of(score, wrong, first)
    gain, more = table.base.loss - float(losses.min()), 1 - float(wrong.min()) - table.base.accuracy
    return Regret(first, loss, loss / gain if gain > 0 else None, accuracy, accuracy / more if more > 0 else None)
