"""Which bias and which scale should a linear edit have unless told otherwise?

    python studies/edit_defaults.py --minutes 60 --out studies/results/edit_defaults.json

Trains a linear edit of rank 8 at single sites of a model on a generated task, with and without a bias on the write,
with what is read divided by its root mean square or not, each at several learning rates; reports the held-out loss of
the best rate. One pack per site, variant and seed holds all rates. The file is written after every pack, and a second
call goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from steerscope import SteeringConfig, load_model
from steerscope.experiments.engine import EditPack, RunSpec, train_pack
from steerscope.experiments.engine.judge import judge_pack
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.tasks import get_task
from steerscope.experiments.tasks.supervised import SupervisedSequence, supervise
from steerscope.experiments.training.data import training_rows
from steerscope.models.load import LoadedModel
from steerscope.steering.scales import measure_scales

SITES = ("8.resid_post", "20.resid_post", "8.mlp_out", "20.mlp_out", "14.attn_out", "26.resid_post")
# Half decades; the best one has to have neighbours on both sides.
RATES = {scale: tuple(float(f"{10 ** (place / 2):.3g}") for place in range(-6, -1)) for scale in ("none", "rms")}
TEST = 256


def sequences(loaded: LoadedModel, task: str, part: str, count: int, seed: int) -> tuple[SupervisedSequence, ...]:
    """Draw questions of a generated task, whose answer is one token right after the prompt."""
    examples = get_task(task).split(part, count, seed)  # type: ignore[arg-type]
    return supervise(examples, loaded.tokenizer, loaded.max_length, ends=False).sequences


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="listops")
    parser.add_argument("--sites", default=",".join(SITES))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    loaded = load_model(options.model)
    schedule = Schedule(steps=options.steps, batch_size=options.batch_size)
    test = sequences(loaded, options.task, "test", TEST, 0)
    settings = {
        "model": options.model,
        "task": options.task,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "test": TEST,
    }
    found: dict[str, Any] = {"settings": settings, "torch": torch.__version__, "runs": []}
    if options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            sys.exit(f"{options.out} was made with {found['settings']}, asked for {settings}. Name another --out.")
    done = {(one["site"], one["bias"], one["scale"], one["seed"]) for one in found["runs"]}
    data, streams = dict[int, Any](), None
    for seed, site, bias, scale in product(range(options.seeds), options.sites.split(","), (True, False), RATES):
        if (site, bias, scale, seed) in done or time.monotonic() > ends:
            continue
        if seed not in data:
            train = sequences(loaded, options.task, "train", options.steps * options.batch_size, 1000 + seed)
            data[seed] = training_rows(train, options.steps, options.batch_size, seed)
        place = loaded.site_map.resolve(site)
        first = [{"input_ids": torch.tensor([row.ids])} for row in data[seed][:64]]
        rms = {str(s): v for s, v in measure_scales(loaded.model, loaded.site_map, (place,), first).items()}
        config = SteeringConfig(sites=site, rank=8, bias=bias, scale=scale, seed=seed)
        pack = EditPack(loaded, [RunSpec(config, rate, seed) for rate in RATES[scale]], rms, streams)
        streams = pack.streams
        since = time.perf_counter()
        trained = train_pack(pack, {seed: data[seed]}, schedule)
        judged = judge_pack(pack, test)
        for spec, run, one in zip(pack.specs, trained, judged, strict=True):
            record = {"site": site, "bias": bias, "scale": scale, "seed": seed, "learning_rate": spec.learning_rate}
            record |= {"rms": rms[str(place)], "diverged": run.diverged, "loss": one.loss, "accuracy": one.accuracy}
            found["runs"].append(record)
        print(site, bias, scale, seed, [round(one.loss, 3) for one in judged], f"{time.perf_counter() - since:.0f} s")
        sys.stdout.flush()
        beside = options.out.with_suffix(".new")
        beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, options.out)


if __name__ == "__main__":
    main()
