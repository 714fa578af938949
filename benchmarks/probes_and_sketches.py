"""What fewer backward passes and shorter sketches do to the learnable share and to the ranks of the sites.

    python benchmarks/probes_and_sketches.py [--examples 96] [--json FILE]

One capture on ListOps with the bundled model: all nine contrasts of the ten answers and sketches of 32 blocks of
16 x 16. Fewer probes are a subset of the nine, shorter sketches a subset of the blocks, so every comparison is on the
same examples. For each: root mean square difference of the shares of all linear sites to the full capture, and
Spearman's correlation with its ranking. The sketch of K_FT is the same throughout.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from steerscope import get_task, load_model
from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.capture.rounded import blocks_of, wide_feature
from steerscope.analysis.data.encoding import encode
from steerscope.analysis.data.examples import content_order
from steerscope.analysis.scoring.intervals import spearman
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores.learnable_share import quick_share

BLOCKS, ALL = 32, 9


def shares(features: Features, full: Features, num_probes: int, num_blocks: int) -> torch.Tensor:
    """Return the share of every linear site from the first probes and blocks of a capture."""
    residual = full.residual
    found = []

    def narrowed(tensor: torch.Tensor) -> torch.Tensor:
        # The loss direction is a combination of all nine probes; it gets a slot of its own.
        wide = wide_feature(tensor)
        direction = torch.einsum("np,npf->nf", residual.to(wide), wide)[:, None]
        return torch.cat([wide[:, :num_probes], direction], dim=1)

    part = replace(
        features,
        residual=residual[:, :num_probes],
        valid=full.valid[:, :num_probes],
        spans=False,
        weights=[narrowed(w) for w in full.weights],
    )
    rows = Rows.of(part)
    count = len(residual)
    halves = (range(count // 2), range(count // 2, count))
    problem = Problem.of(Kernel.of(part.weights, part, rows), rows, halves, num_groups=0, ridge=1.0)
    for feature in full.linear.values():
        blocks = blocks_of(feature, slice(num_blocks), BLOCKS)
        found.append(quick_share(Kernel.of([narrowed(blocks)], part, rows).probe, problem))
    return torch.tensor(found, dtype=torch.float64)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loaded = load_model()
    examples = get_task("listops").split("train", options.examples, 0)
    encoded = encode([examples[i] for i in content_order(examples, 0)], loaded.tokenizer, loaded.max_length)
    probes = make_probes(encoded, ALL, 49152, 0, torch.float32)
    plan = SketchPlan(exact=False, blocks=BLOCKS)
    full = capture(loaded, encoded, probes, plan, seed=0, batch_size=16)
    truth = shares(full, full, ALL, BLOCKS)
    rows = []
    for num_probes, num_blocks in [
        (1, BLOCKS),
        (2, BLOCKS),
        (4, BLOCKS),
        (6, BLOCKS),
        (ALL, 4),
        (ALL, 8),
        (ALL, 16),
        (4, 8),
    ]:
        found = shares(full, full, num_probes, num_blocks)
        rows.append(
            {
                "probes": num_probes,
                "blocks": num_blocks,
                "rms_difference": float((found - truth).pow(2).mean().sqrt()),
                "spearman": spearman(found, truth),
            }
        )
        print(rows[-1], flush=True)
    result = {
        "command": f"python benchmarks/probes_and_sketches.py --examples {options.examples}",
        "sites": len(truth),
        "share_range": [float(truth.min()), float(truth.max())],
        "against": {"probes": ALL, "blocks": BLOCKS},
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
