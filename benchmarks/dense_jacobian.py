"""Captured kernels against dense torch.func Jacobians of the same kernels, on the largest model that still fits.

    python benchmarks/dense_jacobian.py [--limit-gb 6] [--json FILE]

Random Llama-shaped models in float64 of growing width. The dense side makes the Jacobian of every output probe with
respect to a full linear edit at every site (and of every linear map) by ``torch.func.jacrev`` and multiplies it
out; the fast side is the library's exact capture. Both give the same kernels; the difference is printed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch.func import functional_call, jacrev
from transformers import LlamaConfig, LlamaForCausalLM

from steerscope.analysis.capture.capture import capture, read_stats
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.data.encoding import Encoded, OutputMode, TokenSequence, batches
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.models import LoadedModel, edited, wrap_model

NUM_EXAMPLES, LENGTH, NUM_CHOICES, LAYERS = 8, 16, 4, 4


class NoTokenizer:
    """The benchmark makes token ids itself; only a padding id is asked for."""

    pad_token_id = 0


def random_model(width: int) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, attn_implementation="eager",
    )  # fmt: skip
    return wrap_model(LlamaForCausalLM(config).double(), NoTokenizer(), name=f"random-{width}")  # type: ignore[arg-type]


def examples() -> Encoded:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 64, (NUM_EXAMPLES, LENGTH), generator=generator).tolist()
    sequences = tuple(TokenSequence(tuple(row), i, 0, LENGTH) for i, row in enumerate(ids))
    tokens = tuple(tuple(range(NUM_CHOICES)) for _ in ids)
    return Encoded(
        OutputMode.CHOICE_LOGITS, sequences, tokens, tuple(i % NUM_CHOICES for i in range(NUM_EXAMPLES)),
        (NUM_CHOICES,) * NUM_EXAMPLES,
    )  # fmt: skip


def dense_bytes(loaded: LoadedModel) -> int:
    site_map = loaded.site_map
    numbers = sum(site_map.width(s) ** 2 for s in site_map.sites())
    numbers += sum(m.weight.numel() for m in site_map.linear_maps().values())  # type: ignore[union-attr,operator]
    return numbers * NUM_EXAMPLES * (NUM_CHOICES - 1) * 8


def dense_kernels(loaded: LoadedModel, encoded: Encoded, contrasts: torch.Tensor) -> tuple[dict, torch.Tensor]:
    site_map, model = loaded.site_map, loaded.model
    scales = read_stats(loaded, encoded, batch_size=NUM_EXAMPLES, max_examples=NUM_EXAMPLES).scales
    batch = next(batches(encoded, batch_size=NUM_EXAMPLES, pad_id=0, device=loaded.device))
    zeros = {str(s): torch.zeros(site_map.width(s), site_map.width(s), dtype=torch.float64) for s in site_map.sites()}
    names = {
        name: p.detach() for name, p in model.named_parameters() if name.endswith("proj.weight")
    }  # all linear maps of all blocks

    def outputs(edit_matrices: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> torch.Tensor:
        edits = {
            site: (lambda h, site=site: (h / scales[site]) @ edit_matrices[str(site)].T) for site in site_map.sites()
        }
        with edited(model, site_map, edits):
            logits = functional_call(model, weights, kwargs={"input_ids": batch.ids, "use_cache": False}).logits
        return (logits[:, -1, :NUM_CHOICES] @ contrasts.T).flatten()

    by_edit, by_weight = jacrev(outputs, argnums=(0, 1))(zeros, names)
    kernels = {name: j.flatten(1) @ j.flatten(1).T for name, j in by_edit.items()}
    return kernels, sum(j.flatten(1) @ j.flatten(1).T for j in by_weight.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-gb", type=float, default=6.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoded = examples()
    width = 32
    while dense_bytes(random_model(2 * width)) < options.limit_gb * 1e9:
        width *= 2
    loaded = random_model(width)
    probes = make_probes(encoded, NUM_CHOICES - 1, 64, 0, torch.float64)

    def fast() -> tuple[dict, torch.Tensor]:
        features = capture(loaded, encoded, probes, SketchPlan(exact=True), seed=0, batch_size=NUM_EXAMPLES)
        rows = Rows.of(features)
        kernels = {str(s): Kernel.of([f], features, rows).probe for s, f in features.linear.items()}
        return kernels, Kernel.of(features.weights, features, rows).probe

    fast()
    started = time.perf_counter()
    kernels, total = fast()
    fast_seconds = time.perf_counter() - started
    started = time.perf_counter()
    dense, dense_total = dense_kernels(loaded, encoded, probes.contrasts[NUM_CHOICES])
    dense_seconds = time.perf_counter() - started
    worst = max(float((kernels[name] - dense[name]).norm() / dense[name].norm()) for name in kernels)
    result = {
        "command": f"python benchmarks/dense_jacobian.py --limit-gb {options.limit_gb}",
        "width": width,
        "layers": LAYERS,
        "dense_gb": dense_bytes(loaded) / 1e9,
        "dense_over_fast": dense_seconds / fast_seconds,
        "fast_seconds": fast_seconds,
        "dense_seconds": dense_seconds,
        "worst_relative_difference_sites": worst,
        "relative_difference_weights": float((total - dense_total).norm() / dense_total.norm()),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
