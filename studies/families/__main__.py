"""Try every causal family of the installed transformers on tiny random models, and write the table of what came of it.

python -m studies.families                    # all of them: docs/families.md, ten minutes of one core
python -m studies.families llama mixtral      # these anew, the others as they are kept
python -m studies.families --page             # the page again, from the kept results
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from steerscope.files import write_text
from studies.families.page import TITLE, page
from studies.families.tiny import families
from studies.families.trial import Trial, try_family
from studies.programs import exit_code_of, parser_of, write_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "studies" / "results" / "families.json"
PAGE = ROOT / "docs" / "families.md"


def main() -> None:
    """Run the trials that were asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("families", nargs="*", help="names of families; all of them unless given")
    parser.add_argument("--page", action="store_true", help="write the page from the kept results, try nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    kept: dict[str, Any] = {"versions": versions, "trials": {}}
    if RESULTS.is_file() and (asked.families or asked.page):
        kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    for family in [] if asked.page else asked.families or families():
        trial = try_family(family)
        print(f"{trial.outcome:<10} {family:<24} {trial.layout or trial.reason[:90]}", flush=True)
        kept["trials"][family] = trial.as_dict()
        write_text(RESULTS, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    trials = [Trial.read(told) for _, told in sorted(kept["trials"].items())]
    write_page(PAGE, TITLE, page(trials, kept["versions"]))


if __name__ == "__main__":
    raise SystemExit(exit_code_of("studies.families", main))
