"""How much do a table's verdicts on scores depend on which prompts the ranking drew?

    python -m studies.score_draws studies/site_tables/small-*.json --draws 5
    python -m studies.score_draws studies/site_tables/smollm2-135m-recall.json --draws 3

The plan, written before a number was computed, is part B of docs/validation_plan_4.md. Every table's sites are ranked
with several seeds, which draw the prompts (as many as the table's own ranking had), the output directions and the
sketches, once with four output directions and once with as many as span the answers. ``rho``, pairs right, ``W`` and
``J`` of every draw are kept, a draw at a time; a second call goes on. Printed is the spread over draws beside the
interval of a single draw, and the difference between the numbers of directions, draw by draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steerscope import SiteTable
from steerscope.experiments.agreement.layer_bootstrap import Estimate
from steerscope.experiments.site_tables.across import mean_of_drawn
from steerscope.experiments.site_tables.judging import JudgedScore, judge
from steerscope.experiments.site_tables.scored import with_scores
from steerscope.files import json_of, json_text, write_text
from steerscope.installed import package_versions
from studies.plan_3 import earned
from studies.programs import parser_of, program
from studies.ranked_again import ranked_again

SCORES = ("learnable_share", "predicted_loss")
FEW = 4
STATISTICS = ("rho", "W", "right", "J")
RESULT = Path("studies/results/score_draws.json")


def statistics_of(found: JudgedScore) -> dict[str, float]:
    """Return the plan's statistics of a judged score, with the standard error that the interval of ``J`` stands for.

    Args:
        found: The score on one table.
    """
    rho, within, both = earned(found)
    interval = found.both.value
    return {
        "rho": rho,
        "W": within,
        "right": (within + 1) / 2,
        "J": both,
        "error_of_rho": (found.agreement.high - found.agreement.low) / 4,
        "error_of_J": (interval.high - interval.low) / 4,
    }


def drawn(table: SiteTable, seed: int, num_probes: int | None) -> dict[str, Any]:
    """Rank a table's sites with one seed, and judge the scores.

    Args:
        table: The table.
        seed: Of the draw of prompts, of output directions and of sketches.
        num_probes: Output directions; None for as many as span the answers.

    Returns:
        Per score its statistics, the number of directions, and the seconds.

    Raises:
        InputError: The table was ranked with another number of prompts.
    """
    ranking = ranked_again(table, seed=seed, max_examples=table.ranking.draw()[1], num_probes=num_probes)
    scores = with_scores(table, ranking).scores
    judged = judge(table, {name: scores[name] for name in SCORES}).scores
    return {
        "seed": seed,
        "directions": ranking.outputs.n_probes,
        "seconds": round(sum(ranking.timing.values()), 1),
        "scores": {name: statistics_of(judged[name]) for name in SCORES},
    }


def spread(draws: Sequence[Mapping[str, Any]], score: str) -> dict[str, Any]:
    """Return mean and standard deviation over draws for each number of directions, and their difference draw by draw.

    Args:
        draws: What :func:`drawn` returned, of one table.
        score: Its name.

    Returns:
        ``by_directions``, and ``more_less_few``: per statistic the mean difference with Student's interval over the
        seeds that have both; it is absent with fewer than two.
    """
    by_seed: dict[int, dict[int, Mapping[str, float]]] = {}
    for one in draws:
        by_seed.setdefault(one["directions"], {})[one["seed"]] = one["scores"][score]
    found: dict[str, Any] = {"by_directions": {}}
    for directions, own in sorted(by_seed.items()):
        found["by_directions"][str(directions)] = {
            "draws": len(own),
            **{
                name: {
                    "mean": float(np.mean([each[name] for each in own.values()])),
                    "sd": float(np.std([each[name] for each in own.values()], ddof=1)) if len(own) > 1 else None,
                }
                for name in STATISTICS
            },
            **{name: float(np.mean([each[name] for each in own.values()])) for name in ("error_of_rho", "error_of_J")},
        }
    if len(by_seed) == 2:
        few, more = (by_seed[number] for number in sorted(by_seed))
        common = sorted(set(few) & set(more))
        if len(common) > 1:
            found["more_less_few"] = {
                name: _interval([more[seed][name] - few[seed][name] for seed in common]) for name in STATISTICS
            }
    return found


def _interval(values: Sequence[float]) -> list[float]:
    found = mean_of_drawn([Estimate(value, value, value) for value in values])
    assert found is not None, "at least two draws"
    return [found.value, found.low, found.high]


def markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what is printed: a row per table, score and number of directions.

    Args:
        tables: Per table its ``spread`` per score.
    """
    lines = [
        "| table | score | directions | draws | rho: mean, sd (error) | pairs right: mean, sd | J: mean, sd (error) | "
        "J, more less few [95%] | pairs right, more less few |",
        "| --- | --- | ---: | ---: | --- | --- | --- | --- | --- |",
    ]
    for name, scores in tables.items():
        for score, own in scores.items():
            least, most = min(own["by_directions"], key=int), max(own["by_directions"], key=int)
            for directions, one in own["by_directions"].items():
                rest = [
                    _gap(own["more_less_few"][of]) if directions == most != least and "more_less_few" in own else ""
                    for of in ("J", "right")
                ]
                lines.append(
                    f"| {name} | `{score}` | {directions} | {one['draws']} | {_mean(one['rho'])} "
                    f"({one['error_of_rho']:.2f}) | {_mean(one['right'])} | {_mean(one['J'])} "
                    f"({one['error_of_J']:.2f}) | {rest[0]} | {rest[1]} |"
                )
    return "\n".join(lines)


def _mean(one: Mapping[str, float | None]) -> str:
    return f"{one['mean']:.2f}, " + ("-" if one["sd"] is None else f"{one['sd']:.2f}")


def _gap(one: Sequence[float]) -> str:
    return f"{one[0]:+.2f} [{one[1]:+.2f}, {one[2]:+.2f}]"


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=5, help="seeds 0, 1, ...; 0 draws nothing more")
    parser.add_argument("--limit", type=int, help="at most so many rankings in this call")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()

    found: dict[str, Any] = json_of(asked.out) if asked.out.exists() else {"tables": {}}
    found["versions"] = package_versions()
    left = asked.limit
    for path in asked.tables:
        table = SiteTable.load(path)
        draws = found["tables"].setdefault(path.stem, {"draws": []})["draws"]
        for seed in range(asked.draws):
            for num_probes in (FEW, None):
                done = [one["directions"] == FEW for one in draws if one["seed"] == seed]
                if (num_probes == FEW) in done or left == 0:
                    continue
                draws.append(drawn(table, seed, num_probes))
                left = None if left is None else left - 1
                write_text(asked.out, json_text(found))
                print(f"{table.name}: seed {seed}, {draws[-1]['directions']}, {draws[-1]['seconds']} s", flush=True)
    for own in found["tables"].values():
        own["spread"] = {name: spread(own["draws"], name) for name in SCORES if own["draws"]}
    write_text(asked.out, json_text(found))
    print(markdown({name: own["spread"] for name, own in found["tables"].items() if own["draws"]}))


if __name__ == "__main__":
    raise SystemExit(main())
