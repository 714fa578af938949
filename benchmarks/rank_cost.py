"""What ranking costs beside the passes it cannot do without, in time and peak memory, in one run.

    python benchmarks/rank_cost.py [--examples 192] [--probes 9] [--repeats 3] [--threads 2] [--json FILE]

The yardstick is one forward pass and, per output probe and for the loss, one backward pass to the activations of the
same examples in the same batches. ``rounded`` are the same passes with the backward ones in bfloat16, as a ranking
makes them on processors that multiply it faster. Each measurement runs in a process of its own (peak memory is the
process's), yardstick and ranking in turn, so that a machine whose speed drifts is fair to both. Processor time
(``cpu``, of all threads) is given beside wall time: other load moves it less. Without ``--probes`` there are as many
as a ranking takes by itself. On a machine with other work take one thread: threads that wait for each other burn
time.
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


def measure(what: str, num_examples: int, num_probes: int | None, num_threads: int | None) -> dict[str, float]:
    import torch

    from steerscope import RankOptions, get_task, load_model, rank_sites
    from steerscope.analysis.capture.outputs import batch_outputs, make_probes
    from steerscope.analysis.capture.way_back import RoundedBack, rounded_weight, rounds_back
    from steerscope.analysis.data.encoding import batches, encode
    from steerscope.process import keep_few_compiled_products

    keep_few_compiled_products()  # as `steerscope rank` does
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    loaded = load_model()
    examples = get_task("listops").split("train", num_examples, 0)
    options = RankOptions(max_examples=num_examples, num_probes=num_probes)
    encoded = encode(examples, loaded.tokenizer, loaded.max_length)
    probes = make_probes(encoded, num_probes, 49152, 0, torch.float32)
    embeddings = loaded.model.get_input_embeddings()
    source: list[torch.Tensor] = []
    handle = embeddings.register_forward_hook(
        lambda module, args, output: source.append(output.detach().requires_grad_()) or source[-1]
    )

    def passes(some: range | None) -> None:
        for batch in batches(encoded, batch_size=options.batch_size, pad_id=0, device=loaded.device, examples=some):
            source.clear()
            outputs = batch_outputs(loaded.model, batch, encoded, probes)
            scalars = [outputs.probes[:, p].sum() for p in range(probes.num_probes)]
            scalars += [] if probes.spans else [outputs.log_likelihood.sum()]
            for done, scalar in enumerate(scalars):
                torch.autograd.grad(scalar, source[0], retain_graph=done + 1 < len(scalars))

    if what == "rounded":
        for module in loaded.site_map.linear_maps().values():
            if rounds_back(module, torch.float32, loaded.device):
                weight = rounded_weight(module, torch.float32)
                module.register_forward_hook(
                    lambda module, args, output, weight=weight: RoundedBack.apply(
                        args[0], output.detach(), weight, lambda grad: grad.flatten(0, -2).to(weight.dtype)
                    )
                )
    passes(range(32))  # warm up
    if what != "ranking":
        started, busy = time.perf_counter(), time.process_time()
        passes(None)
        seconds = {what: time.perf_counter() - started, "cpu": time.process_time() - busy}
    else:
        handle.remove()
        started, busy = time.perf_counter(), time.process_time()
        ranking = rank_sites(loaded, examples, options)
        seconds = {"ranking": time.perf_counter() - started, "cpu": time.process_time() - busy, **ranking.timing}
    return seconds | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--probes", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=["passes", "rounded", "ranking"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.examples, options.probes, options.threads)))
        return
    given = ["--examples", str(options.examples)]
    for name in ("probes", "threads"):
        given += [] if getattr(options, name) is None else [f"--{name}", str(getattr(options, name))]
    runs: dict[str, list[dict[str, float]]] = {"passes": [], "rounded": [], "ranking": []}
    for _ in range(options.repeats):
        for what, found in runs.items():
            command = [sys.executable, __file__, "--measure", what]
            command += given
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(out.splitlines()[-1]))
            print(what, {k: round(v, 2) for k, v in found[-1].items()}, flush=True)
    pairs = list(zip(runs["passes"], runs["ranking"], strict=True))
    rounded = [one["rounded"] / passes["passes"] for passes, one in zip(runs["passes"], runs["rounded"], strict=True)]
    result = {
        "command": " ".join(["python benchmarks/rank_cost.py", *given, "--repeats", str(options.repeats)]),
        "machine": f"{platform.machine()}, {__import__('os').cpu_count()} cores",
        "time_ratio": median([r["ranking"] / p["passes"] for p, r in pairs]),
        "cpu_ratio": median([r["cpu"] / p["cpu"] for p, r in pairs]),
        "capture_ratio": median([r["capture"] / p["passes"] for p, r in pairs]),
        "rounded_ratio": median(rounded),
        "memory_ratio": median([r["peak_gb"] / p["peak_gb"] for p, r in pairs]),
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
