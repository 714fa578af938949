"""How many steps of a real fine-tuning does first order last?

    python studies/first_order_steps.py MODEL --task listops --out studies/results/first_order_steps-NAME.json

Fine-tunes all linear maps of the blocks by AdamW, for every learning rate and seed, and after every step compares the
shift of the logits that the update so far makes with its first-order prediction, on other prompts. Each run ends once
less than half is explained; the file grows run by run, and runs that it has are not repeated.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from steerscope import get_task, load_model
from steerscope.analysis.data.encoding import encode_for
from steerscope.analysis.theory.common import rows_of_one_length
from steerscope.installed import package_versions
from studies.programs import parser_of
from studies.steps_explained import first_order_steps


def main() -> None:
    """Measure every learning rate and seed that the file does not have yet."""
    parser = parser_of(__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", default="listops")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-5, 1e-5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()

    loaded = load_model(options.model, dtype="float32")
    task = get_task(options.task)
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    found |= {"model": loaded.identity.as_dict(), "task": options.task, "versions": package_versions()}
    for rate in options.rates:
        for seed in options.seeds:
            name = f"rate {rate:g}, seed {seed}"
            if name in found["runs"]:
                continue
            rows = rows_of_one_length(encode_for(loaded, task.split("validation", 200, seed)), options.rows)
            run = first_order_steps(
                loaded,
                task.split("train", options.most * options.batch_size, seed),
                rows.ids,
                most=options.most,
                learning_rate=rate,
                batch_size=options.batch_size,
                seed=seed,
            )
            found["runs"][name] = asdict(run) | {"steps_within": run.steps_within}
            options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(f"{name}: {run.steps_within} steps", [round(part, 3) for part in run.explained], flush=True)


if __name__ == "__main__":
    main()
