"""Do scores order the sites of a table better with as many output directions as span its answers?

    python -m studies.more_probes studies/site_tables studies/results/more_probes.json

Ranks the sites of every table again, with the examples, seed and options of the table's own ranking but for the number
of output directions per example: one fewer than there are digits to answer with, which spans all differences between
them. Of tables of the bundled model, which nothing is chosen on, only the scores that need no spectrum.
docs/site_tables.md shows what comes of it; the plan of the validation (docs/validation_plan_3.md) says
how many the default becomes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steerscope import SiteTable
from steerscope.experiments.site_tables.scored import with_scores
from steerscope.files import json_of, json_text, write_text
from studies.plan_3 import CANDIDATES, REPORTING
from studies.programs import parser_of, program
from studies.ranked_again import ranked_again

PROBES = 9


def scores_of(table: SiteTable) -> dict[str, dict[str, float]]:
    """Return the candidates' scores of a table's sites, from a ranking with more directions.

    Args:
        table: The table.

    Raises:
        InputError: Its model is not there, or its scores were made with other examples.
    """
    extra = () if table.model.name == REPORTING else ("spectrum",)
    ranking = ranked_again(table, seed=table.ranking.draw()[0], num_probes=PROBES, extra=extra)
    found = with_scores(table, ranking).scores
    return {name: found[name] for name in CANDIDATES if name in found}


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("tables", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()

    found: dict[str, Any] = json_of(asked.out) if asked.out.exists() else {"probes": PROBES, "scores": {}}
    for path in sorted(asked.tables.glob("*.json")):
        table = SiteTable.load(path)
        if path.stem in found["scores"]:
            continue
        found["scores"][path.stem] = scores_of(table)
        write_text(asked.out, json_text(found))
        print(f"{table.name}: {len(found['scores'][path.stem])} scores", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
