"""Other ways of scoring a site, against the trained losses of a validation: the candidates of docs/validation_plan.md.

    python benchmarks/score_candidates.py VALIDATION.json MODEL --role choose|report [--task T --data-dir DIR]
        [--examples 192] [--json FILE]

One capture of all output directions at the validation's sites, with several kinds of features side by side: reads
scaled per channel (as the default score does), by one number per site (as the trained edit does), reads and
derivatives both scaled per channel (Adam's diagonal as a product), and the down-projected features of rank 8.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steerscope import get_task, load_model
from steerscope.analysis.capture.capture import read_stats
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.outputs import batch_outputs, make_probes
from steerscope.analysis.capture.recorder import Recorder
from steerscope.analysis.data.encoding import batches, encode
from steerscope.analysis.data.examples import content_order
from steerscope.analysis.scoring.intervals import spearman
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.problem import Problem, predict
from steerscope.equivalence.tangents import combine, random_projection
from steerscope.experiments.agreement.correlations import finite_losses, partial_spearman
from steerscope.experiments.validation.result import Validation
from steerscope.models.hooks import tapping
from steerscope.models.site_map import SiteMap
from steerscope.models.wrappers import vocab_size
from steerscope.sites import Site

BLOCKS, SIZE = 8, 24
RANK, DRAWS, RANK_SIZE = 8, 4, 48
# Candidates that the ranking itself computes.
FROM_RANKING = ("predicted_loss", "predicted_loss_bounded", "alignment", "gradient_capture")
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class NoSites:
    """A site map without sites: the recorder then records the weights alone, and the sites are recorded here."""

    inner: SiteMap

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def sites(self, kinds: object = None) -> tuple[Site, ...]:
        return ()


class Variants:
    """Features of every variant at chosen sites, filled by hooks."""

    def __init__(self, site_map: SiteMap, sites: list[Site], scales: dict[Site, Tensor], recorder: Recorder) -> None:
        self.site_map, self.sites, self.scales, self.recorder = site_map, sites, scales, recorder
        self.width = {site: site_map.width(site) for site in sites}
        widths = set(self.width.values())
        self.left = {w: projection(w, BLOCKS * SIZE, BLOCKS, 1) for w in widths}
        self.right = {w: projection(w, BLOCKS * SIZE, BLOCKS, 2) for w in widths}
        self.thin = {w: projection(w, RANK_SIZE, 1, 3) for w in widths}
        self.downs = {
            site: [
                torch.randn(self.width[site], RANK, generator=torch.Generator().manual_seed(100 + k)) / math.sqrt(RANK)
                for k in range(DRAWS)
            ]
            for site in sites
        }
        self.squares = {site: torch.zeros(self.width[site]) for site in sites}
        self.grad_scale: dict[Site, Tensor] = {}
        self.features: dict[tuple[str, Site], Tensor] = {}
        self.slot = 0  # the backward pass that is on its way

    def tap(self, site: Site):
        width = self.width[site]

        def at(value: Tensor, read: Tensor) -> Tensor:
            seen = read.detach() * self.recorder.batch.mask[..., None]
            raw = seen / self.scales[site].pow(2).mean().sqrt()
            scaled = (seen / self.scales[site]) @ self.right[width]
            raw_projected, thin = raw @ self.right[width], [raw @ down for down in self.downs[site]]

            def on_grad(grad: Tensor) -> None:
                grad = grad * self.recorder.batch.mask[..., None]
                if site not in self.grad_scale:  # the first pass measures how large derivatives are
                    self.squares[site] += grad.pow(2).sum((0, 1))
                    return
                projected = grad @ self.left[width]
                self.put("channel", site, combine(projected, scaled, BLOCKS))
                self.put("raw", site, combine(projected, raw_projected, BLOCKS))
                self.put("adam", site, combine((grad / self.grad_scale[site]) @ self.left[width], scaled, BLOCKS))
                for k, one in enumerate(thin):
                    self.put(f"rank{k}", site, combine(grad @ self.thin[width], one))

            marked = value.view_as(value)
            marked.register_hook(on_grad)
            return marked

        return at

    def put(self, variant: str, site: Site, feature: Tensor) -> None:
        recorder = self.recorder
        feature = recorder.batch.by_example(feature[None])[0]
        if (variant, site) not in self.features:
            shape = (recorder.rows, recorder.slots, feature.shape[1])
            self.features[variant, site] = torch.zeros(shape, dtype=torch.bfloat16)
        self.features[variant, site][recorder.batch.examples, self.slot] = feature.bfloat16()

    def measure_grads(self) -> None:
        for site in self.sites:
            rms = self.squares[site].sqrt()
            rms = rms.clamp_min(1e-3 * float(rms.max()))
            self.grad_scale[site] = rms / rms.pow(2).mean().sqrt()


def projection(width: int, rows: int, blocks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return random_projection(rows, width, blocks=blocks, generator=generator).T.float().contiguous()


def share(kernel: Tensor, problem: Problem, *, with_mean: bool = False) -> float:
    error = size = 0.0
    for direction in problem.directions:
        found = predict(kernel / kernel.diagonal().mean(), direction, problem.ridge)
        guess = found.update_with_mean if with_mean else found.update
        truth = (direction.update_with_mean if with_mean else direction.update)[1]
        error += float((truth[:, 0] - guess[:, 0]).pow(2).sum())
        size += float(truth[:, 0].pow(2).sum())
    return 1 - error / size


def own_direction(kernel: Tensor, problem: Problem) -> float:
    along = length = size = 0.0
    for direction in problem.directions:
        guess = predict(kernel / kernel.diagonal().mean(), direction, problem.ridge).residual[:, 0]
        truth = direction.residual[1].double()
        along, length, size = along + float(guess @ truth), length + float(guess @ guess), size + float(truth @ truth)
    return along / math.sqrt(length * size)


def drop(kernel: Tensor, problem: Problem, rows: Rows, curvature: Tensor, *, regression: bool) -> float:
    """Loss drop per held-out prompt along the site's own direction at its best length, to second order."""
    unit = (kernel / kernel.diagonal().mean()).double()
    total = 0.0
    for direction in problem.directions:
        weights = direction.residual[0].double()
        if regression:
            block = unit[direction.train, direction.train]
            weights = torch.linalg.solve(block + problem.ridge * torch.eye(len(block), dtype=block.dtype), weights)
        moved = unit[direction.test, direction.train] @ weights
        dense = torch.zeros(rows.num_examples, curvature.shape[1], dtype=torch.float64)
        dense[rows.example[direction.test], rows.probe[direction.test]] = moved
        gain = float(moved @ direction.residual[1].double())
        bent = float(torch.einsum("np,npq,nq->", dense, curvature.double(), dense))
        total += max(gain, 0.0) ** 2 / (2 * max(bent, 1e-12))
    return total / rows.num_examples


def candidates(kernels: dict[str, Tensor], target: Kernel, rows: Rows, curvature: Tensor) -> dict[str, float]:
    n = rows.num_examples
    halves = (range(n // 2), range(n // 2, n))
    problems = {ridge: Problem.of(target, rows, halves, num_groups=0, ridge=ridge) for ridge in RIDGES}
    one = problems[1.0]
    channel, adam = kernels["channel"], kernels["adam"]
    found = {"share": share(channel, one)}
    found |= {f"share_ridge_{r:g}": share(channel, problems[r]) for r in RIDGES if r != 1.0}
    found["share_raw"] = share(kernels["raw"], one)
    found["share_adam"] = share(adam, one)
    found["share_rank8"] = float(np.mean([share(kernels[f"rank{k}"], one) for k in range(DRAWS)]))
    found["share_with_mean"] = share(channel, one, with_mean=True)
    found["own_direction"] = own_direction(channel, one)
    for name, kernel in (("", channel), ("_adam", adam)):
        found[f"own_drop{name}"] = drop(kernel, one, rows, curvature, regression=True)
        found[f"step_drop{name}"] = drop(kernel, one, rows, curvature, regression=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("validation", type=Path)
    parser.add_argument("model")
    parser.add_argument("--role", choices=["choose", "report"], required=True)
    parser.add_argument("--task", default="listops")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    study = Validation.load(options.validation)
    loaded = load_model(options.model)
    site_map = loaded.site_map
    sites = [site_map.resolve(one.method) for one in study.sites]
    examples = get_task(options.task, options.data_dir).split("train", options.examples, 0)
    examples = [examples[i] for i in content_order(examples, 0)]
    encoded = encode(examples, loaded.tokenizer, loaded.max_length)
    probes = make_probes(encoded, max(encoded.num_choices) - 1, vocab_size(loaded.model), 0, torch.float32)
    stats = read_stats(loaded, encoded, batch_size=16, max_examples=64)
    scales = stats.scales
    thin = replace(loaded, site_map=NoSites(site_map))  # type: ignore[arg-type]
    recorder = Recorder(thin, encoded, probes, SketchPlan(exact=False, rounded_back=False), scales, seed=0)
    variants = Variants(site_map, sites, scales, recorder)

    def run(chosen: range, *, measure: bool) -> None:
        for batch in batches(encoded, batch_size=16, pad_id=0, device=loaded.device, examples=chosen):
            recorder.start(batch)
            outputs = batch_outputs(loaded.model, batch, encoded, probes)
            recorder.residual[outputs.examples] = outputs.residual.double()
            recorder.curvature[outputs.examples] = outputs.curvature.double()
            scalars = [outputs.probes[:, p].sum() for p in range(probes.num_probes)]
            if measure:
                scalars = [outputs.log_likelihood.sum()]
            for slot, scalar in enumerate(scalars):
                recorder.start_slot(slot)
                variants.slot = slot
                torch.autograd.grad(scalar, recorder.source, retain_graph=slot + 1 < len(scalars))
                if not measure:
                    recorder.finish_slot()

    taps = {site: variants.tap(site) for site in sites}
    with recorder.attached(), tapping(site_map, taps), torch.enable_grad():
        run(range(min(48, len(examples))), measure=True)
        variants.measure_grads()
        run(range(len(examples)), measure=False)
    features = recorder.features(probes.valid(encoded), {})  # of no site but those recorded here
    rows = Rows.of(features)
    target = Kernel.of(features.weights, features, rows)
    names = ["channel", "raw", "adam", *(f"rank{k}" for k in range(DRAWS))]
    table = []
    for site in sites:
        kernels = {name: Kernel.of([variants.features.pop((name, site))], features, rows).probe for name in names}
        table.append(candidates(kernels, target, rows, features.curvature))
        print(site, {k: round(v, 3) for k, v in table[-1].items()}, file=sys.stderr, flush=True)
    for index, one in enumerate(study.sites):
        table[index] |= {name: one.scores[name] for name in FROM_RANKING}
    losses = -finite_losses(study.losses()).mean(1)
    depth = np.array([float(site.layer) for site in sites])
    found = {}
    for name in table[0]:
        values = np.array([row[name] for row in table])
        found[name] = {
            "spearman": round(spearman(values, losses) or 0.0, 4),
            "partial": round(partial_spearman(values, losses, depth), 4),
        }
    result = {
        "study": study.study,
        "role": options.role,
        "command": shlex.join(["python", "benchmarks/score_candidates.py", *sys.argv[1:]]),
        "examples": len(examples),
        "candidates": found,
        "values": {
            one.method: {k: round(v, 5) for k, v in row.items()} for one, row in zip(study.sites, table, strict=True)
        },
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
