"""Operations and memory of rankings and sweeps of large models, by counting: the table of docs/scale.md.

    python -m benchmarks.scale_on_paper

A ranking of 192 prompts of 128 tokens with four probes and the loss; a sweep of 48 sites or a few more (all kinds of
evenly spread layers), three tries for the rate, three seeds, 80 steps of 24 sequences of 128 tokens. Weights in
bfloat16.
"""

from __future__ import annotations

from benchmarks.shapes import (
    Shape,
    ranking_features,
    ranking_operations,
    sweep_operations,
)
from steerscope.analysis.theory.common import spread

# Shapes as published: SmolLM2-135M, Llama 3 8B and 70B, Qwen3 235B with 22B active.
SHAPES = (
    Shape("135M", 30, 576, 1536, 9, 3, 64, 49152, tied=True),
    Shape("8B", 32, 4096, 14336, 32, 8, 128, 128256),
    Shape("70B", 80, 8192, 28672, 64, 8, 128, 128256),
    Shape("235B, 22B active", 94, 4096, 1536, 64, 4, 128, 151936, experts=128, active=8),
)
PROMPTS, LENGTH, PASSES = 192, 128, 5
SITES, TRIES, SEEDS, STEPS, ROWS = 48, 3, 3, 80, 24
# Of one accelerator.
MEMORY = 80e9


def rows() -> list[str]:
    """Return the rows of the table as Markdown."""
    heads = (
        "model", "weights, GB", "GPUs of 80 GB for the weights alone", "passes of a ranking, PFLOP", "features, GB",
        "runs of a sweep", "training of a sweep, PFLOP", "of that one run at the lowest layer",
    )  # fmt: skip
    found = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for shape in SHAPES:
        weights = 2.0 * shape.parameters
        layers = spread(shape.layers, -(-SITES // shape.kinds))
        run = STEPS * ROWS * LENGTH
        numbers = [
            f"{weights / 1e9:,.1f}",
            f"{-(-weights // MEMORY):.0f}",
            f"{ranking_operations(shape, PROMPTS * LENGTH, PASSES) / 1e15:,.2f}",
            f"{ranking_features(shape, PROMPTS, PASSES) / 1e9:,.2f}",
            f"{len(layers) * shape.kinds * (TRIES + SEEDS - 1)}",
            f"{sweep_operations(shape, layers, run, TRIES, SEEDS) / 1e15:,.0f}",
            f"{run * shape.operations_per_token()[0] / 1e15:,.2f}",
        ]
        found.append(f"| {shape.name} | {' | '.join(numbers)} |")
    return found


if __name__ == "__main__":
    print("\n".join(rows()))
