"""Speed and memory of training: linear edits after every block against PEFT's LoRA, rank 8, on the same batches.

    python benchmarks/train_speed.py [--model smollm2-135m] [--steps 12] [--batch-size 16] [--repeats 3] [--json FILE]

Each measurement is a process of its own (peak memory is the process's), the two in turn, so that a machine whose speed
drifts is fair to both. Tokens per second are those of prompt and completion, padding not counted, whatever all rows
begin with counted in every row though it is computed once per batch; the first steps warm up and are not counted.
``floor`` is the forward pass alone, without anything trained: what no method goes below; ``frozen`` is its time as a
part of a step of post-block. ``whole`` trains post-block on whole rows; ``shared_start`` is what computing their common
start once gains.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

WARM = 2
METHODS = ("post-block", "lora", "floor", "whole")


def measure(what: str, model: str, steps: int, batch_size: int, rank: int, dtype: str) -> dict[str, float]:
    import torch

    from steerscope.experiments.engine.loop import train_pack
    from steerscope.experiments.engine.model_pack import ModelPack
    from steerscope.experiments.tasks import get_task
    from steerscope.experiments.tasks.supervised import supervise
    from steerscope.experiments.training.data import training_rows
    from steerscope.experiments.training.options import TrainOptions
    from steerscope.experiments.training.trainee import build
    from steerscope.models import load_model

    at: list[tuple[float, float]] = []

    def clock(*_: object) -> None:
        at.append((time.perf_counter(), time.process_time()))

    method = "lora" if what == "lora" else "post-block"
    options = TrainOptions("listops_paper", method, rank=rank, batch_size=batch_size, steps=steps + WARM, dtype=dtype)
    loaded = load_model(model, dtype=dtype)
    examples = get_task("listops_paper").split("train", options.steps * batch_size, 0)
    sequences = supervise(examples, loaded.tokenizer, loaded.max_length).sequences
    rows = training_rows(sequences, options.steps, batch_size, 0)
    tokens = sum(len(row.ids) for row in rows[WARM * batch_size :])
    trained = loaded.model if what == "floor" else build(loaded, options, []).model
    pack = ModelPack(trained, options.spec(1e-3), 2)
    if what == "whole":
        pack.prepare = lambda sequences: None  # type: ignore[method-assign]
    if what == "floor":
        pack.prepare(rows)
        clock()
        with torch.no_grad():
            for start in range(0, len(rows), batch_size):
                pack.losses([0], [rows[start : start + batch_size]])
                clock()
    else:
        train_pack(pack, {0: rows}, options.schedule(), show=clock)
    (first, busy), (last, done) = at[WARM], at[-1]
    return {
        "tokens_per_second": tokens / (last - first),
        "tokens_per_cpu_second": tokens / (done - busy),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found = measure(options.measure, options.model, options.steps, options.batch_size, options.rank, options.dtype)
        print(json.dumps(found))
        return
    given = [
        f"--{name.replace('_', '-')}={getattr(options, name)}"
        for name in ("model", "steps", "batch_size", "rank", "dtype")
    ]
    runs: dict[str, list[dict[str, float]]] = {what: [] for what in METHODS}
    for _ in range(options.repeats):
        for what, found in runs.items():
            command = [sys.executable, __file__, "--measure", what, *given]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(out.splitlines()[-1]))
            print(what, {name: round(value, 2) for name, value in found[-1].items()}, flush=True)

    def ratio(of: str, to: str, what: str) -> float:
        return median([a[what] / b[what] for a, b in zip(runs[of], runs[to], strict=True)])

    result = {
        "command": f"python benchmarks/train_speed.py {' '.join(given)} --repeats={options.repeats}",
        "machine": f"{platform.machine()}, {__import__('os').cpu_count()} cores",
        "speed_ratio": ratio("post-block", "lora", "tokens_per_second"),
        "cpu_speed_ratio": ratio("post-block", "lora", "tokens_per_cpu_second"),
        "memory_ratio": ratio("post-block", "lora", "peak_gb"),
        "frozen": ratio("post-block", "floor", "tokens_per_second"),
        "shared_start": ratio("post-block", "whole", "tokens_per_second"),
        "runs": runs,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
