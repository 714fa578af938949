"""Try every causal family of the installed transformers on tiny random models, and write the table of what came of it.

python -m studies.families                    # all of them: docs/families.md, ten minutes of one core
python -m studies.families llama mixtral      # a few: printed only
python -m studies.families --page             # the page again, from the kept results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers

from steerscope.files import exit_code_of, write_page, write_text
from studies.families.page import TITLE, page
from studies.families.tiny import families
from studies.families.trial import Trial, try_family

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "studies" / "results" / "families.json"
PAGE = ROOT / "docs" / "families.md"


def main() -> None:
    """Run the trials that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="names of families; all of them unless given")
    parser.add_argument("--page", action="store_true", help="write the page from the kept results, try nothing")
    asked = parser.parse_args()
    if not asked.page:
        torch.set_num_threads(1)
        trials = []
        for family in asked.families or families():
            trials.append(trial := try_family(family))
            print(f"{trial.outcome:<10} {family:<24} {trial.layout or trial.reason[:90]}", flush=True)
        if asked.families:
            return
        versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
        kept = {"versions": versions, "trials": [trial.as_dict() for trial in trials]}
        write_text(RESULTS, json.dumps(kept, indent=1) + "\n")
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_page(PAGE, TITLE, page([Trial.read(told) for told in kept["trials"]], kept["versions"]))


if __name__ == "__main__":
    raise SystemExit(exit_code_of("studies.families", main))
