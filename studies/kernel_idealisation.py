"""How far is the kernel that rankings use from that of the edit that is trained?

    python studies/kernel_idealisation.py MODEL --task listops --out studies/results/kernel_idealisation-NAME.json

A ranking takes a linear edit as a full matrix, with what is read divided by its root mean square channel by channel,
and without bias. What `train` trains is `U D x + b` of rank 8, with D as it starts and U zero. Both kernels are made
from the same exact features, the second for several draws of D; reported are, over all sites, the learnable share of
both, their Spearman correlation, and the same for each difference alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from scipy.stats import spearmanr
from torch import Tensor

from steerscope import get_task, load_model
from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.data.encoding import encode_for
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores.learnable_share import quick_share
from steerscope.files import json_text
from steerscope.installed import package_versions
from steerscope.models.wrappers import vocab_size
from steerscope.sites import Site
from steerscope.steering.families.base import default_start
from studies.programs import parser_of


def kernels_of(features: Features, rows: Rows, site: Site, ranks: int, draws: int) -> dict[str, list[Tensor]]:
    """Return the kernels of one site's edit, idealised and as it is trained, and with one difference each."""
    own, vector = features.linear[site], features.vector[site.write]
    width = features.scales[site].numel()
    scaled = own.unflatten(-1, (-1, width))
    raw = scaled * features.scales[site].to(scaled)

    def kernel(*parts: Tensor) -> Tensor:
        return Kernel.of([part.flatten(2) for part in parts], features, rows, cross=False).probe

    found = {"full": [kernel(scaled)], "raw reads": [kernel(raw)], "with bias": [kernel(scaled, vector)]}
    for draw in range(draws):
        down = default_start((ranks, width), width, scaled.dtype, torch.Generator().manual_seed(draw))
        # A draw for the scaled reads of as large a part of the whole as the one for raw reads.
        found.setdefault("low rank", []).append(kernel(scaled @ down.T))
        found.setdefault("as trained", []).append(kernel(raw @ down.T, vector))
    return found


def main() -> None:
    """Compare the kernels at every site."""
    parser = parser_of(__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", default="listops")
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    loaded = load_model(options.model)
    encoded = encode_for(loaded, get_task(options.task).split("train", options.examples, options.seed))
    probes = make_probes(encoded, options.probes, vocab_size(loaded.model), options.seed, torch.float32)
    features = capture(loaded, encoded, probes, SketchPlan(exact=True), seed=options.seed, batch_size=16)
    rows, half = Rows.of(features), options.examples // 2
    target = Kernel.of(features.weights, features, rows, what="the weights")
    halves = (range(half), range(half, options.examples))
    problem = Problem.of(target, rows, halves, num_groups=0, ridge=1.0)
    shares: dict[str, dict[str, list[float]]] = {}
    for site in features.linear:
        for name, kernels in kernels_of(features, rows, site, options.rank, options.draws).items():
            shares.setdefault(name, {})[str(site)] = [quick_share(kernel, problem) for kernel in kernels]
    result: dict[str, Any] = {
        "command": f"python studies/kernel_idealisation.py {options.model} --task {options.task} --out FILE",
        "settings": {name: value for name, value in vars(options).items() if name not in ("out", "model")},
        "model": loaded.identity.name,
        "versions": package_versions(),
        "sites": len(features.linear),
        "against_full": {},
    }
    full = [shares["full"][site][0] for site in shares["full"]]
    for name, own in shares.items():
        draws = torch.tensor([own[site] for site in shares["full"]])
        error = draws - torch.tensor(full)[:, None]
        orders = [float(spearmanr(full, draws[:, draw]).statistic) for draw in range(draws.shape[1])]
        result["against_full"][name] = {
            "rms_difference": float(error.square().mean().sqrt()),
            "mean_difference": float(error.mean()),
            "sd_over_draws": float(draws.std(1).mean()) if draws.shape[1] > 1 else 0.0,
            "spearman": sum(orders) / len(orders),
            "spearman_of_mean": float(spearmanr(full, draws.mean(1)).statistic),
        }
    result["shares"] = {name: {site: sum(v) / len(v) for site, v in own.items()} for name, own in shares.items()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json_text(result), encoding="utf-8")
    print(json.dumps(result["against_full"], indent=1))


if __name__ == "__main__":
    main()
