"""What packs save on a GPU: the same steps of training run after run, and in packs of several sizes.

    python benchmarks/gpu_packs.py [--device cuda] [--dtype bfloat16] [--sizes 1 8 32 96] [--tokens 360] [--json FILE]

A Llama of the bundled model's shape with random weights, made on the device; random prompts of ``tokens`` tokens per
step and run, in 24 rows. Runs are linear edits of rank 8 at all kinds of sites of one layer, and more seeds of them.
Per size: milliseconds per step and run, how many times the runs per hour of runs one after another, and which part of
the device's measured rate of matrix products the linear maps alone come to (attention, norms and edits not counted).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from itertools import islice, product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from steerscope import SteeringConfig
from steerscope.experiments.engine import EditPack, train_pack
from steerscope.experiments.engine.run_records import spec_of
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.sweeping.cost import operations_per_token
from steerscope.experiments.tasks.supervised import SupervisedSequence
from studies.gpu_smoke import SHAPES, random_model, synchronised

ROWS, STEPS, WARM = 24, 20, 3


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Return floating-point operations per second of a square matrix product."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(2):
        left @ right
    since = synchronised(device)
    for _ in range(5):
        left @ right
    return 5 * 2 * size**3 / (synchronised(device) - since)


def measure(loaded: Any, device: str, layer: int, size: int, tokens: int, steps: int) -> dict[str, float]:
    """Time the steps of one pack."""
    kinds = [kind for kind in loaded.site_map.description.kinds if kind != "resid_pre"]
    named = islice(((kind, seed) for seed, kind in product(range(size), kinds)), size)
    configs = [(SteeringConfig(sites=f"{layer}.{kind}", family="linear", rank=8), seed % 3) for kind, seed in named]
    draw = random.Random(0)
    length, vocab = tokens // ROWS, int(loaded.model.config.vocab_size)
    rows = [
        SupervisedSequence(tuple(draw.randrange(3, vocab) for _ in range(length)), length - 1)
        for _ in range((steps + WARM) * ROWS)
    ]
    pack = EditPack(loaded, [spec_of(config, 1e-3, seed) for config, seed in configs])
    schedule, data = Schedule(steps + WARM, ROWS), dict.fromkeys(range(3), rows)
    reached: list[float] = []
    train_pack(pack, data, schedule, show=lambda step, _: reached.append(synchronised(device)))
    seconds = (reached[-1] - reached[WARM]) / steps
    operations = operations_per_token(loaded)[layer] * length * ROWS * size
    return {"ms_per_step": 1e3 * seconds, "ms_per_step_and_run": 1e3 * seconds / size, "flops": operations / seconds}


def main() -> None:
    """Measure every size at two layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shape", default="135M", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32, 96])
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 15])
    parser.add_argument("--tokens", type=int, default=360, help="per run and step")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--square", type=int, default=8192, help="size of the matrices whose product gives the rate")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loaded = random_model(options.shape, options.device, options.dtype)
    rate = matrix_rate(options.device, getattr(torch, options.dtype), options.square)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device,
        "torch": torch.__version__,
        "shape": options.shape,
        "dtype": options.dtype,
        "matrix_product_flops": rate,
        "tokens_per_run_and_step": options.tokens,
        "layers": {},
    }
    for layer in options.layers:
        own = {}
        for size in options.sizes:
            one = measure(loaded, options.device, layer, size, options.tokens, options.steps)
            alone = own.get(1, one)["ms_per_step_and_run"]
            own[size] = one | {"times_one_by_one": alone / one["ms_per_step_and_run"], "used": one["flops"] / rate}
        found["layers"][layer] = own
        print(json.dumps({layer: own}, indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
