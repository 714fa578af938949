"""Seeded, synthetic but realistic rankings for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steerscope.analysis.result_parts import (
    DifferentiatedOutputs,
    Evidence,
    KernelSummary,
    RankSettings,
    ReferenceLoss,
    TrainedPoint,
)
from steerscope.analysis.results import (
    GreedyStep,
    KindScore,
    LearningCurve,
    Ranking,
    SiteScore,
    Stability,
)
from steerscope.analysis.scoring.standing import MARGIN, standing_of
from steerscope.model_identity import ModelIdentity
from steerscope.reports.ranking.tables import tables
from steerscope.reports.tables import plain_table

SEQUENTIAL = ("attn_heads", "attn_out", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")
PARALLEL = ("attn_heads", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")
# How well each kind does beside the others (linear family).
_KIND = {
    "resid_pre": 0.55,
    "attn_heads": 0.62,
    "attn_out": 0.48,
    "resid_mid": 0.84,
    "mlp_in": 0.7,
    "mlp_hidden": 0.78,
    "mlp_out": 0.58,
    "resid_post": 1.0,
}
# The point of the stream where a kind adds: kinds that share it share their vector.
_WRITES = {"attn_out": "mid", "resid_mid": "mid", "mlp_out": "post", "resid_post": "post"}
_HOSTILE = "<script>alert(1)</script>"


def format_table(ranking: Ranking) -> str:
    return "\n\n".join(map(plain_table, tables(ranking)))


@dataclass(frozen=True)
class Shape:
    """What a synthetic model and its signal look like."""

    layers: int
    kinds: tuple[str, ...] = SEQUENTIAL
    d_model: int = 576
    peak: float = 0.42
    floor: float = 0.04
    noise: float = 0.008
    half_width: float = 0.025
    parallel: bool = False


def _scores(rng: np.random.Generator, share: float, layer: int, layers: int) -> dict[str, float]:
    """Return every score a site carries, each loosely tied to its share."""
    depth = layer / max(layers - 1, 1)
    return {
        "learnable_share": share,
        "learnable_share_with_mean": 0.6 + 0.4 * share + rng.normal(0, 0.01),
        "in_sample_share": min(0.98, 0.35 + share + rng.normal(0, 0.02)),
        "own_direction": share * 0.5 + rng.normal(0, 0.03),
        "alignment": 0.4 * share + rng.normal(0, 0.03),
        "predicted_loss": 0.2 * share + rng.normal(0, 0.02),
        "gradient_capture": 0.8 * share + rng.normal(0, 0.05),
        "gradient_norm": float(np.exp(2.0 - 3.0 * depth + rng.normal(0, 0.2))),
        "activation_norm": float(np.exp(1.0 + 3.0 * depth + rng.normal(0, 0.2))),
        "depth": float(layer),
        "middle_layer": -abs(depth - 0.5),
        "last_layer": float(layer == layers - 1),
        "random": float(rng.uniform()),
    }


def _share(rng: np.random.Generator, shape: Shape, layer: int, kind: str) -> float:
    depth = layer / max(shape.layers - 1, 1)
    bump = np.exp(-(((depth - 0.3) / 0.28) ** 2))
    return float(shape.floor + (shape.peak - shape.floor) * _KIND[kind] * bump + rng.normal(0, shape.noise))


def _sites(rng: np.random.Generator, shape: Shape) -> list[SiteScore]:
    vectors: dict[tuple[int, str], tuple[float, dict[str, float]]] = {}
    sites = []
    for layer in range(shape.layers):
        for kind in ("resid_pre", *shape.kinds) if layer == 0 else shape.kinds:
            wide = shape.d_model * (3 if kind == "mlp_hidden" else 1)
            for family, params in (("linear", 8 * (wide + wide)), ("vector", wide)):
                share = _share(rng, shape, layer, kind) * (1.0 if family == "linear" else 0.22)
                scores = _scores(rng, share, layer, shape.layers)
                point = "post" if shape.parallel and kind in _WRITES else _WRITES.get(kind, kind)
                if family == "vector":
                    share, scores = vectors.setdefault((layer, point), (share, scores))
                half = shape.half_width * (1 + 0.3 * abs(share))
                sites.append(SiteScore(layer, kind, family, share, share - half, share + half, params, False, scores))
    sites.sort(key=lambda site: (-site.score, site.layer, site.kind, site.family))
    return stood(sites, 0.7 * shape.half_width)


def stood(sites: list[SiteScore], half: float) -> list[SiteScore]:
    """Return sites, best first, with paired intervals of the difference to the best that reach so far to both sides."""
    best, found = sites[0], []
    for site in sites:
        difference = best.score - site.score
        low, high = (0.0, 0.0) if site is best else (difference - half, difference + half)
        found.append(
            replace(
                site,
                ties_with_best=low <= 0,
                difference=difference,
                difference_low=low,
                difference_high=high,
                standing=standing_of(low, high, MARGIN * abs(best.score)).value,
            )
        )
    return found


def _kinds(sites: list[SiteScore]) -> list[KindScore]:
    kinds = []
    for kind, family in sorted({(site.kind, site.family) for site in sites}):
        of_kind = [site for site in sites if (site.kind, site.family) == (kind, family)]
        top = max(site.score for site in of_kind)
        score = top + 0.35 * (1 - top) * max(top, 0) if len(of_kind) > 1 else top
        params = sum(site.n_params for site in of_kind)
        kinds.append(KindScore(kind, family, score, score - 0.03, score + 0.03, params, len(of_kind)))
    return sorted(kinds, key=lambda kind: -kind.score)


def _greedy(sites: list[SiteScore]) -> list[GreedyStep]:
    chosen, steps, score, params = set(), [], 0.0, 0
    for site in sites:
        if site.layer in chosen or len(steps) == 6:
            continue
        chosen.add(site.layer)
        params += site.n_params
        score = site.score if not steps else score + 0.45 * max(sites[0].score, 0.01) * 0.55 ** len(steps)
        steps.append(
            GreedyStep(len(steps) + 1, site.layer, site.kind, site.family, score, score - 0.03, score + 0.03, params)
        )
    return steps


def _curves(sites: list[SiteScore], n_fit: int) -> list[LearningCurve]:
    shown, seen = [], set()
    for index, site in enumerate(s for s in sites if s.family == "linear"):
        if index < 3 or site.kind not in seen:
            seen.add(site.kind)
            numbers = tuple(n for n in (4, 8, 16, 32, 64) if n <= n_fit)
            shares = tuple(site.score * (1 - 1.1 * np.exp(-3 * n / n_fit)) for n in numbers[:-1])
            shown.append(LearningCurve(site.layer, site.kind, site.family, numbers, (*map(float, shares), site.score)))
    return shown


def build(shape: Shape, seed: int = 0, **changes: Any) -> Ranking:
    """Return a ranking of a synthetic model; ``changes`` replace fields of the result."""
    rng = np.random.default_rng(seed)
    sites = _sites(rng, shape)
    ranking = Ranking(
        model=ModelIdentity(
            name="smollm2-135m",
            revision="main",
            sha256="9f2c" * 16,
            layers=shape.layers,
            quantised="Weights were stored in 4 to 6 bits (GGUF) and are used as rounded.",
            layout="parallel" if shape.parallel else "sequential pre-norm",
            d_model=shape.d_model,
            n_params=134_515_008,
            dtype="float32",
        ),
        task="capitals",
        n_examples=128,
        seed=seed,
        versions={"steerscope": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        score="learnable_share",
        equal_margin=MARGIN * abs(sites[0].score),
        kind_score="learnable_share",
        sites=tuple(sites),
        kinds=tuple(_kinds(sites)),
        greedy=tuple(_greedy(sites)),
        curves=tuple(_curves(sites, 64)),
        stability=Stability(0.91, 0.6, True, 64, 0.8, top_agreement=0.95),
        outputs=DifferentiatedOutputs(
            description="log probability of the answer's tokens",
            mode="completion",
            n_probes=32,
            n_backward=64,
            spans=False,
            mean_energy=0.62,
            n_tokens=2048,
            model_accuracy=0.8,
            model_loss=0.9,
        ),
        kernels=KernelSummary(
            exact=False, description="features sketched to 2,048 dimensions", sketch_error=0.021, score_error=0.004
        ),
        settings=RankSettings(
            ridge=1.0,
            rank=8,
            num_groups=12,
            n_fit=64,
            max_sites=8,
            budget=100_000,
            batch_size=16,
            kinds=shape.kinds,
            command="steerscope rank smollm2-135m --task capitals --seed 0",
        ),
        timing={"load": 1.5, "capture": 24.2, "kernels": 9.75, "ranking": 3.1},
    )
    return replace(ranking, **changes)


def plateau(first: int = 4, last: int = 15, layers: int = 22) -> Ranking:
    """Stream and attention of some layers are equally good, vectors too; below and above all is worse."""
    ranking = build(Shape(layers=layers), seed=7)
    good = {"attn_heads", "attn_out", "resid_mid", "resid_post"}
    sites = []
    for site in ranking.sites:
        inside = first <= site.layer <= last and site.kind in good
        share = (0.96 if inside else 0.6) - 0.0001 * site.layer - 0.001 * (site.family == "vector")
        point = _WRITES.get(site.kind, site.kind)
        # Kinds that write at one point share their vector, so both are as good as the better one.
        if site.family == "vector" and point == "post" and first <= site.layer <= last:
            share = 0.959 - 0.0001 * site.layer
        scores = site.scores | {ranking.score: share}
        sites.append(replace(site, score=share, ci_low=share - 0.03, ci_high=min(share + 0.03, 1.0), scores=scores))
    sites.sort(key=lambda site: (-site.score, site.layer, site.kind, site.family))
    outputs = replace(ranking.outputs, model_accuracy=0.22, constant_accuracy=0.2, model_loss=2.17)
    margin = MARGIN * sites[0].score
    found = replace(ranking, sites=tuple(stood(sites, 0.02)), greedy=tuple(_greedy(sites)), outputs=outputs)
    return replace(found, equal_margin=margin)


def thirty_layers() -> Ranking:
    """A 30-layer sequential model with a clear answer."""
    return build(Shape(layers=30))


def two_layers_parallel() -> Ranking:
    """A 2-layer parallel model: no ``resid_mid``, one vector for all three writes, nothing else to warn of."""
    ranking = build(Shape(layers=2, kinds=PARALLEL, d_model=32, parallel=True), seed=1)
    points = tuple(
        TrainedPoint(f"{layer}.{kind}", score=0.1 * i, loss=2.0 - 0.1 * i, low=1.9 - 0.1 * i, high=2.1 - 0.1 * i)
        for i, (layer, kind) in enumerate((layer, kind) for layer in (0, 1) for kind in PARALLEL[1:4])
    )
    foreseen = {"score": "learnable_share", "spearman": 0.89, "low": 0.5, "high": 1.0, "partial": 0.8, "regret": 0.0}
    baseline = {"score": "depth", "spearman": 0.2, "low": -0.5, "high": 0.7, "partial": 0.0, "regret": 0.3}
    evidence = Evidence(
        summary="Training at 6 sites agreed with the ranking (Spearman 0.89).",
        spearman=0.89,
        attainable=0.95,
        points=points,
        references=(ReferenceLoss("lora", 1.4), ReferenceLoss("0.mlp_out+1.mlp_out", 1.45)),
        agreements=(foreseen | {"is_baseline": False}, baseline | {"is_baseline": True}),
    )
    kernels = KernelSummary(exact=True, description="exact features")
    return replace(ranking, model=replace(ranking.model, quantised=None), kernels=kernels, evidence=evidence)


def cannot_tell() -> Ranking:
    """Noise as large as the differences between sites."""
    shape = Shape(layers=12, peak=0.09, floor=0.05, noise=0.02, half_width=0.08)
    return build(shape, seed=2, stability=Stability(0.12, 0.6, False, 64, 0.1, top_agreement=0.5))


def all_negative() -> Ranking:
    """No site does better than predicting no update."""
    return build(Shape(layers=12, peak=-0.05, floor=-0.3, noise=0.02), seed=3)


def hostile_names() -> Ranking:
    """Names that would run a script, move the cursor, be read as markup or as mathematics."""
    ranking = build(Shape(layers=4), seed=4)
    hostile = f"{_HOSTILE}\x1b[31m$x_$ [red]\u202e\n"
    return replace(
        ranking,
        task=hostile,
        model=replace(ranking.model, name=hostile, layout=_HOSTILE, quantised=hostile),
        warnings=(hostile,),
        settings=replace(ranking.settings, command=f"steerscope rank '{hostile}'", kinds=(_HOSTILE,)),
        outputs=replace(ranking.outputs, description=hostile),
        evidence=Evidence(summary=hostile),
    )


def hundred_layers() -> Ranking:
    """The deepest model the maps are drawn for."""
    return build(Shape(layers=100), seed=5)


def bare() -> Ranking:
    """As little as a ranking can hold: one site, nothing optional."""
    ranking = build(Shape(layers=2), seed=6)
    return replace(
        ranking,
        sites=ranking.sites[:1],
        kinds=(),
        greedy=(),
        curves=(),
        kernels=KernelSummary(exact=False, description=""),
        settings=replace(ranking.settings, budget=None, command=None),
        timing={},
    )


CASES: dict[str, Callable[[], Ranking]] = {
    case.__name__: case
    for case in (
        thirty_layers,
        plateau,
        two_layers_parallel,
        cannot_tell,
        all_negative,
        hostile_names,
        hundred_layers,
        bare,
    )
}
