"""Run folders made of numbers, as the page of claims reads them."""

from __future__ import annotations

from dataclasses import replace

from steerscope.analysis.provenance import RECIPE
from steerscope.experiments.comparison import compare
from steerscope.experiments.training import RunFolder
from steerscope.model_identity import ModelIdentity
from studies.claims.groups import Group, groups_of
from tests.experiments.training.cases import GENERATIONS, MODEL, config, evaluation, results

N = 200
SETTINGS = {
    "steps": 120, "batch_size": 32, "learning_rate": "auto", "tries": 7, "positions": "all", "family": "linear",
    "bias": True, "recipe": RECIPE,
}  # fmt: skip
REAL = replace(MODEL, n_params=200_000_000)


def run(
    folder,
    method: str,
    right: list[set[int]],
    kind: str | None = "resid_post",
    parameters: int = 1000,
    interior: bool = True,
    searched_once: bool = False,
    rank: int | None = 8,
    model: ModelIdentity | None = None,
    losses: list[float] | None = None,
    **settings,
):
    """One run per seed, with these questions of N answered rightly."""
    told = {} if method == "none" else SETTINGS
    for seed, chosen in enumerate(right):
        own = config(
            method=method,
            seed=seed,
            sites=() if kind is None else (f"0.{kind}", f"1.{kind}"),
            rank=None if method in ("sft", "none") else rank,
            settings=told | settings,
            model=model or MODEL,
        )
        name = "-".join([method, *(f"{key}{value}" for key, value in settings.items()), str(rank), str(seed)])
        place = RunFolder.create(folder / name.replace(":", ""), own)
        lines = [replace(GENERATIONS[0], key=f"q{i}", is_right=i in chosen) for i in range(N)]
        facts = {"learning_rate_is_interior": interior, "learning_rate_of_seed": 0 if searched_once else seed}
        facts |= {} if method == "none" else {"learning_rate": 0.003}
        facts |= {} if losses is None else {"losses": [[i, loss + 0.001 * seed] for i, loss in enumerate(losses)]}
        trained = 0 if method == "none" else parameters
        found = replace(results(own, evaluation(len(chosen), N), trained), training=facts)
        place.finish(found, lines)


def untrained(folder, count: int, recalibrated: float | None = 0.2, **settings):
    """The model as it is, with what it reaches recalibrated beside it."""
    run(folder, "none", [first(count)], None, **settings)
    (place,) = folder.glob("none-*")
    (place / "recalibrated.json").write_text(f'{{"accuracy": {recalibrated or "null"}, "n": {N}}}')


def first(count: int) -> set[int]:
    return set(range(count))


def entries(folder):
    return compare([folder]).entries


def of(folder, method: str, **settings):
    (found,) = [
        e for e in entries(folder) if e.method == method and all(e.settings.get(k) == v for k, v in settings.items())
    ]
    return found


def group(folder) -> Group:
    return groups_of(compare([folder]))[0]
