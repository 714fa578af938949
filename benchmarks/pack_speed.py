"""What training runs together saves, in one process: the same runs one by one and as one pack.

    python benchmarks/pack_speed.py [--task listops listops_paper] [--layer 20] [--runs 4] [--steps 2] [--repeats 3]

Runs are linear edits after one block at different learning rates, on the same batches. ``one_by_one`` trains each by
itself, on whole rows, everything below the block computed by each. ``kept`` is the engine as it was before packs were
made faster, also one by one, but what enters the block was computed before the clock starts; ``together`` trains them
so as one pack. ``alone`` and ``pack`` are the present engine, one by one and as one pack: they enter above the block,
compute what all prompts begin with once per run, cut the rows of a step by length and fuse norms. Trying out whether
the start can be shared, once per training, is not counted: it would weigh on few steps. Times are those of the CPU, one
thread, so that a busy machine is fair to all; a ratio above 1 is in favour of the pack.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from steerscope import SteeringConfig, get_task, load_model
from steerscope.experiments.engine import EditPack, RunSpec, train_pack
from steerscope.experiments.engine.frozen import FrozenStreams
from steerscope.experiments.engine.held_out import hold_out
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.training.data import training_rows
from steerscope.models.load import LoadedModel


class WholeRows(EditPack):
    """A pack that computes every row whole, in one pass, with the model's own norms."""

    def prepare(self, sequences: Sequence[Any]) -> None:
        """Try nothing out."""


class BelowTheBlock(FrozenStreams):
    """Streams that enter the block whose output is edited."""

    def move_to(self, layer: int) -> None:
        """Make ready for the block below."""
        super().move_to(layer - 1)


def prepared(pack: EditPack, rows: Sequence[Any]) -> EditPack:
    """Try out before the clock starts what every training tries out first."""
    pack.prepare(rows)
    pack.prepare = lambda sequences: None  # type: ignore[method-assign]
    return pack


def tokens_of(pack: EditPack, rows: Sequence[Any], options: argparse.Namespace) -> dict[str, float]:
    """Count the tokens of a run and step: what there is, with all rows padded to the longest, and cut by length."""
    found = {"real": 0, "padded": 0, "cut": 0}
    for step in range(options.steps):
        batch = rows[step * options.batch_size : (step + 1) * options.batch_size]
        found["real"] += sum(len(row.ids) for row in batch)
        found["padded"] += len(batch) * max(len(row.ids) for row in batch)
        for _, (part, *_) in pack._pieces([batch] * options.runs):
            start = pack._start(part)
            found["cut"] += start + len(part) * (max(len(row.ids) for row in part) - start)
    return {name: count / options.steps for name, count in found.items()}


def measure(loaded: LoadedModel, task: str, options: argparse.Namespace) -> dict[str, Any]:
    schedule = Schedule(steps=options.steps, batch_size=options.batch_size)
    # Batches of similar length are cut from pools of eight: examples of fewer would be padded more.
    examples = get_task(task).split("train", max(8, options.steps) * options.batch_size, 0)
    texts = [(one.prompt, one.completion, one.choices) for one in examples]
    sequences = hold_out(texts, loaded.tokenizer, loaded.max_length, loaded.model).sequences
    rows = training_rows(sequences, max(8, options.steps), options.batch_size, 0)[: options.steps * options.batch_size]
    config = SteeringConfig(sites=f"{options.layer}.resid_post")
    specs = [RunSpec(config, 1e-3 * (1 + run)) for run in range(options.runs)]
    pad = EditPack(loaded, specs).pad
    streams, below = (kind(loaded.model, loaded.site_map, pad) for kind in (FrozenStreams, BelowTheBlock))
    for own in (streams, below):
        own.move_to(options.layer + 1)
        own.entering(rows)
    ways = {
        "one_by_one": [WholeRows(loaded, [spec]) for spec in specs],
        "kept": [WholeRows(loaded, [spec], None, below) for spec in specs],
        "together": [WholeRows(loaded, specs, None, below)],
        "alone": [prepared(EditPack(loaded, [spec], None, streams), rows) for spec in specs],
        "pack": [prepared(EditPack(loaded, specs, None, streams), rows)],
    }
    shared = ways["pack"][0]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, packs in ways.items():
            if name == "one_by_one":
                for pack in packs:
                    pack.streams = BelowTheBlock(loaded.model, loaded.site_map, pad)
            since = time.process_time()
            for pack in packs:
                train_pack(pack, {0: rows}, schedule)
            seconds[name].append(time.process_time() - since)
    ratios = {}
    for name in (name for name in ways if name != "pack"):
        found = sorted(a / b for a, b in zip(seconds[name], seconds["pack"], strict=True))
        ratios[name] = {"least": found[0], "median": found[len(found) // 2], "greatest": found[-1]}
    return {
        "tokens_per_row": sum(len(row.ids) for row in rows) / len(rows),
        "common_start": shared._start(rows),
        "tokens": tokens_of(shared, rows, options),
        "cpu_seconds": seconds,
        "ratio": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", nargs="+", default=["listops", "listops_paper"])
    parser.add_argument("--layer", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(options.model)
    given = {k.replace("_", "-"): " ".join(v) if isinstance(v, list) else v for k, v in vars(options).items() if v}
    result = {
        "command": "python benchmarks/pack_speed.py " + " ".join(f"--{k} {v}" for k, v in given.items() if k != "json"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "tasks": {task: measure(loaded, task, options) for task in options.task},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
