"""What the two-step share is worth, by the rule of docs/validation_plan_4.md, from what studies/velocity_share.py kept.

    python -m studies.velocity_verdict studies/results/velocity_share.json studies/site_tables

Prints a table of ``rho``, pairs right and ``J`` per score and site table, the means over admitted tables with
differences from the scores that a second kernel has to beat, and whether the change of the kernel warns of errors of
the learnable share; the same goes into the result file, under ``judged``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import rankdata

from steerscope import SiteTable
from steerscope.experiments.agreement.across_and_within import across_and_within
from steerscope.experiments.agreement.correlations import Array, finite_losses, spearman_or_zero
from steerscope.experiments.agreement.layer_bootstrap import Estimate, LayerBootstrap
from steerscope.experiments.agreement.layer_pairs import layer_pairs
from steerscope.experiments.site_tables.across import mean_of_independent
from steerscope.experiments.site_tables.common import common_outcomes, score_array
from steerscope.experiments.site_tables.judging import Judgement, fixed_baselines, judge
from steerscope.files import json_of, json_text, write_text
from steerscope.reports.site_tables.tables import interval
from studies.programs import parser_of, program
from studies.velocity_share import FACTS

CANDIDATES = ("velocity_converged", "velocity_share")
# What a candidate has to beat: by HIGHER in J with an interval above 0; and by any amount.
SAME_HALF, ALSO = ("converged_share", "learnable_share"), ("gauss_newton_step", "depth_then_kind")
HIGHER = 0.05
WARNED_OF = "learnable_share"


@dataclass(frozen=True)
class Judged:
    """One table.

    Attributes:
        admitted: Whether the whole table is: then it counts.
        judgement: Of the sites that were looked at.
        differences: Per candidate and what it has to beat, the difference of J with its interval.
        warning: Spearman's correlation of the kernel's change with how far off the learnable share's rank is.
    """

    admitted: bool
    judgement: Judgement
    differences: dict[str, dict[str, Estimate]]
    warning: Estimate


def judged(table: SiteTable, scores: Mapping[str, Mapping[str, float]], seed: int = 0) -> Judged:
    """Judge scores of some of a table's sites.

    Args:
        table: The whole table.
        scores: By site, then by name; what is no score is left out.
        seed: Of the bootstrap.

    Returns:
        What the sites that have scores say.
    """
    admitted = judge(table, {}, seed=seed).admission.holds
    part = replace(table, runs=tuple(run for run in table.runs if run.site in scores))
    names = [name for name in next(iter(scores.values())) if name not in FACTS]
    by_name = {name: {site: own[name] for site, own in scores.items()} for name in names}
    judgement = judge(part, by_name, seed=seed)
    common = common_outcomes(part)
    arrays = {name: score_array(name, own, common.sites) for name, own in by_name.items()}
    arrays |= fixed_baselines(common)
    pairs = layer_pairs(common.losses, common.layers)
    beaten = (*SAME_HALF, *ALSO)
    both = across_and_within(arrays, common.losses, common.layers, pairs, fixed=beaten, seed=seed)
    losses = finite_losses(common.losses).mean(1)
    return Judged(
        admitted,
        judgement,
        {name: both[name].margins for name in CANDIDATES},
        warning_of(-arrays["kernel_change"], arrays[WARNED_OF], losses, LayerBootstrap(common.layers, seed)),
    )


def warning_of(change: Array, score: Array, losses: Array, bootstrap: LayerBootstrap) -> Estimate:
    """Return Spearman's correlation of a kernel's change with how many ranks a score is off, with its interval.

    Args:
        change: ``site``: larger where first order ends sooner.
        score: ``site``: higher for a better site.
        losses: ``site``: of training, mean over seeds.
        bootstrap: Of the sites' layers.
    """
    off = abs(rankdata(score) - rankdata(-losses))
    drawn = bootstrap.correlations(bootstrap.ranks(change), bootstrap.ranks(off))
    return bootstrap.correlation(spearman_or_zero(change, off), drawn)


def answer(tables: Mapping[str, Judged], candidate: str) -> dict[str, Any]:
    """Follow the rule for one candidate.

    Args:
        tables: By name; those that are not admitted count for nothing.
        candidate: Its name.

    Returns:
        ``verdict`` (``worth it``, ``undecided``, ``not worth it``), and the means that it comes from.
    """
    counted = [one for one in tables.values() if one.admitted]
    found: dict[str, Any] = {"candidate": candidate, "tables": sum(one.admitted for one in tables.values())}
    differences = {
        other: mean_of_independent([one.differences[candidate][other] for one in counted])
        for other in (*SAME_HALF, *ALSO)
    }
    within = {name: _mean_within(counted, name) for name in (candidate, *SAME_HALF)}
    found |= {"differences": {other: asdict(one) for other, one in differences.items()}, "within": within}
    higher = all(differences[other].value >= HIGHER for other in SAME_HALF)
    sure = all(differences[other].low > 0 for other in SAME_HALF)
    rest = all(within[candidate] >= within[other] for other in SAME_HALF)
    rest = rest and all(differences[other].value > 0 for other in ALSO)
    found["verdict"] = "not worth it" if not (higher and rest) else "worth it" if sure else "undecided"
    return found


def _mean_within(counted: list[Judged], name: str) -> float:
    shares = [one.judgement.scores[name].pairs.share for one in counted]
    return sum(0.0 if share is None else 2 * share.value - 1 for share in shares) / len(shares)


def markdown(tables: Mapping[str, Judged]) -> str:
    """Return what is printed.

    Args:
        tables: By name.
    """
    lines = []
    for name, one in tables.items():
        own = one.judgement
        lines += [
            f"{name} ({own.num_sites} sites, {own.num_pairs} pairs, {'' if one.admitted else 'not '}admitted)",
            "",
            "| score | rho | pairs right | J | J less `converged_share` | less `learnable_share` |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for score, found in own.scores.items():
            share = found.pairs.share
            right = "-" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
            rho = found.agreement
            more = one.differences.get(score, {})
            rest = " | ".join(_signed(more[other]) if other in more else "" for other in SAME_HALF)
            lines.append(
                f"| `{score}` | {rho.spearman:.2f} [{rho.low:.2f}, {rho.high:.2f}] | {right} | "
                f"{interval(found.both.value)} | {rest} |"
            )
        lines += ["", f"Change of the kernel with ranks that `{WARNED_OF}` is off: {interval(one.warning)}.", ""]
    return "\n".join(lines)


def _signed(one: Estimate) -> str:
    return f"{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("tables", type=Path)
    asked = parser.parse_args()

    found = json_of(asked.result)
    tables = {
        name: judged(SiteTable.load(asked.tables / f"{name}.json"), own["sites"])
        for name, own in found["tables"].items()
    }
    print(markdown(tables))
    found["judged"] = {
        "answers": [answer(tables, candidate) for candidate in CANDIDATES],
        "tables": {
            name: {
                "admitted": one.admitted,
                "sites": one.judgement.num_sites,
                "pairs": one.judgement.num_pairs,
                "scores": {
                    score: {
                        "rho": [own.agreement.spearman, own.agreement.low, own.agreement.high],
                        "pairs_right": None if own.pairs.share is None else asdict(own.pairs.share),
                        "J": asdict(own.both.value),
                    }
                    for score, own in one.judgement.scores.items()
                },
                "differences": {
                    score: {other: asdict(value) for other, value in own.items()}
                    for score, own in one.differences.items()
                },
                "warning": asdict(one.warning),
            }
            for name, one in tables.items()
        },
    }
    for one in found["judged"]["answers"]:
        less = ", ".join(f"`{other}` {_signed(Estimate(**own))}" for other, own in one["differences"].items())
        within = ", ".join(f"`{name}` {value:.2f}" for name, value in one["within"].items())
        print(f"{one['candidate']}: {one['verdict']}. Mean J of {one['tables']} tables, less {less}. W: {within}.")
    write_text(asked.result, json_text(found))


if __name__ == "__main__":
    raise SystemExit(main())
