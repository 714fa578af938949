"""What a slice of a capture costs, in time and memory, for one, two and four slices, and that kernels stay the same.

    python benchmarks/capture_slices.py [--model NAME] [--task NAME] [--examples 64] [--probes 2] [--json FILE]

Every slice is a process of its own, one after the other, as if each had a machine: ``cpu`` is its processor time for
the capture, ``memory_gb`` how much its memory grew at most (Linux), ``features_gb`` the size of the features on disk.
What is put together is compared with the capture in one piece, by the kernels of the
weights and of every site.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(told: argparse.Namespace, index: int, count: int, path: Path) -> dict[str, float]:
    import torch

    from steerscope import get_task, load_model
    from steerscope.analysis.capture.features import SketchPlan
    from steerscope.analysis.capture.outputs import make_probes
    from steerscope.analysis.capture.slices import capture_slice
    from steerscope.analysis.data.encoding import encode_for
    from steerscope.models.wrappers import vocab_size

    torch.set_num_threads(told.threads)
    loaded = load_model(told.model)
    encoded = encode_for(loaded, get_task(told.task).split("train", told.examples, 0))
    chosen = make_probes(encoded, told.probes, vocab_size(loaded.model), 0, torch.float32)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew: loading has one of its own
    before = memory("VmRSS")
    started, busy = time.perf_counter(), time.process_time()
    found = capture_slice(
        loaded, encoded, chosen, SketchPlan(exact=False), index=index, count=count, seed=0, batch_size=16
    )
    seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - busy}
    peak = memory("VmHWM")
    found.save(path)
    return {
        "examples": len(found.rows),
        **seconds,
        "memory_gb": peak - before,
        "features_gb": path.stat().st_size / 1e9,
    }


def memory(field: str) -> float:
    """Return a field of this process's memory in GB: as it is (VmRSS), or at its largest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def difference(whole: Path, parts: list[Path]) -> dict[str, Any]:
    """Return the largest relative difference of kernels, and whether all their numbers are the same to the bit."""
    import torch

    from steerscope.analysis.capture.slices import Slice, joined
    from steerscope.analysis.scoring.kernels import Kernel, Rows

    first, other = joined([Slice.load(whole)]), joined([Slice.load(part) for part in parts])
    rows = Rows.of(first)
    largest, same = 0.0, True
    for own in [(first.weights, other.weights)] + [([first.linear[s]], [other.linear[s]]) for s in first.linear]:
        one, two = (Kernel.of(sets, features, rows).probe for sets, features in zip(own, (first, other), strict=True))
        largest = max(largest, float((one - two).abs().max() / one.abs().max()))
        same = same and torch.equal(one, two)
    return {"largest_relative_difference": largest, "same_to_the_bit": same, "kernels": 1 + len(first.linear)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="listops")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--probes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        index, count, path = options.measure
        print(json.dumps(measure(options, int(index), int(count), Path(path))))
        return
    names = ("model", "task", "examples", "probes", "threads")
    told = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    result: dict[str, Any] = {
        "command": f"python benchmarks/capture_slices.py {' '.join(told)}",
        "machine": f"{platform.machine()}, {options.threads} thread",
        "slices": {},
        "kernels": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2, 4):
            paths = [Path(folder) / f"{index}_of_{count}" for index in range(count)]
            for index, path in enumerate(paths):
                command = [sys.executable, __file__, *told, "--measure", str(index), str(count), str(path)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = {name: round(value, 3) for name, value in json.loads(out.splitlines()[-1]).items()}
                result["slices"].setdefault(str(count), []).append(found)
                print(count, index, found, flush=True)
            result["kernels"][str(count)] = difference(Path(folder) / "0_of_1", paths)
            print(result["kernels"][str(count)], flush=True)
            if count > 1:
                for path in paths:
                    path.unlink()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
