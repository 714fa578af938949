"""What the untrained model would reach if it only learned how often which answer is right, on a run of ``none``.

    python -m studies.claims.recalibrated RUN [--data-dir DIR]

Writes ``recalibrated.json`` into the run's folder: the accuracy with the best temperature and one number per answer
token, fitted on training examples. A task whose answers are no choices of one token has none, which is written too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steerscope.analysis.provenance import content_hash
from steerscope.errors import InputError
from steerscope.experiments.engine.held_out import hold_out
from steerscope.experiments.runs.folder import read_results
from steerscope.experiments.sweeping.recalibration import recalibrate
from steerscope.experiments.tasks import Task, at_most, get_task
from steerscope.experiments.tasks.supervised import supervise
from steerscope.files import write_text
from steerscope.models import load_model
from studies.programs import parser_of, program

RECALIBRATED = "recalibrated.json"
# Training examples that are fitted on: the bias is some ten numbers.
EXAMPLES = 512


def measure_recalibrated(run: Path, task: Task) -> dict[str, Any]:
    """Measure and write it.

    Args:
        run: Folder of a run of method ``none``.
        task: The run's task.

    Returns:
        What was written: ``accuracy`` (``None`` where there is none) and the number ``n`` of test questions.

    Raises:
        InputError: The run trained something, or was asked other questions.

    Cost: a forward pass over 512 training examples and the test examples.
    """
    results = read_results(run)
    if results.method != "none":
        raise InputError(f"{str(run)!r} is a run of method {results.method!r}; expected none, the model as it is.")
    model = results.model
    loaded = load_model(model.name, dtype=model.dtype, revision=model.revision)
    asked = at_most(task, "test", results.settings.get("test_examples"), 0)
    if content_hash(asked, ordered=False) != results.settings.get("data", {}).get("test"):
        raise InputError(f"{str(run)!r} was asked other questions than these. Give the [[data_dir]] of the run.")
    texts = [(one.prompt, one.completion, one.choices) for one in asked]
    test = hold_out(texts, loaded.tokenizer, loaded.max_length, loaded.model)
    accuracy = None
    if test.choices is not None and all(len(one.ids) == one.first_target + 1 for one in test.sequences):
        train = task.split("train", EXAMPLES if task.is_generated else None, 0)[:EXAMPLES]
        rows = supervise(train, loaded.tokenizer, loaded.max_length, loaded.model, ends=False).sequences
        accuracy = float(recalibrate(loaded, rows, test).after.correct.double().mean())
    found = {"accuracy": accuracy, "n": len(asked), "examples": EXAMPLES}
    write_text(run / RECALIBRATED, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


@program("recalibrated")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()

    task = get_task(read_results(options.run).task, options.data_dir)
    print(json.dumps(measure_recalibrated(options.run, task)))


if __name__ == "__main__":
    raise SystemExit(main())
