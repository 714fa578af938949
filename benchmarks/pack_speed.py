"""What training runs together saves, in one process: the same runs one after another and as one pack.

    python benchmarks/pack_speed.py [--layer 20] [--runs 4] [--steps 6] [--repeats 3] [--json FILE]

Runs are linear edits after one block at different learning rates, on the same batches. Both ways compute what lies
below the block once and keep it; this is done before the clock starts. A ratio above 1 is in favour of the pack.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from steerscope import SteeringConfig, get_task, load_model
from steerscope.experiments.engine import EditPack, RunSpec, train_pack
from steerscope.experiments.engine.held_out import hold_out
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.training.data import training_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loaded = load_model(options.model)
    schedule = Schedule(steps=options.steps, batch_size=options.batch_size)
    examples = get_task("listops").split("train", options.steps * options.batch_size, 0)
    texts = [(one.prompt, one.completion, one.choices) for one in examples]
    sequences = hold_out(texts, loaded.tokenizer, loaded.max_length, loaded.model).sequences
    rows = training_rows(sequences, options.steps, options.batch_size, 0)
    config = SteeringConfig(sites=f"{options.layer}.resid_post")
    specs = [RunSpec(config, 1e-3 * (1 + run)) for run in range(options.runs)]
    streams = EditPack(loaded, specs).streams
    streams.move_to(options.layer)
    streams.entering(rows)
    seconds: dict[str, list[float]] = {"alone": [], "pack": []}
    for _ in range(options.repeats):
        for name, packs in (("alone", [[spec] for spec in specs]), ("pack", [specs])):
            since = time.perf_counter()
            for pack in packs:
                train_pack(EditPack(loaded, pack, None, streams), {0: rows}, schedule)
            seconds[name].append(time.perf_counter() - since)
    ratios = sorted(a / b for a, b in zip(seconds["alone"], seconds["pack"], strict=True))
    result = {
        "command": "python benchmarks/pack_speed.py "
        + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in vars(options).items() if v),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "tokens_per_run": sum(len(row.ids) for row in rows),
        "seconds": seconds,
        "ratio": {"least": ratios[0], "median": ratios[len(ratios) // 2], "greatest": ratios[-1]},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
