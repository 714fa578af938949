"""Which bias and which scale should a linear edit have unless told otherwise?

    python -m studies.edit_defaults MODEL --task TASK --sites 21.resid_post,27.attn_out --out FOLDER --minutes 20

Trains a linear edit of rank 8 at single sites of a model, with and without a bias on the write, with what is read
divided by its root mean square or not. Each has a learning rate of its own, searched with the first seed on selection
examples until its neighbours on both sides are worse, and two seeds or more. Runs are kept as they end, and a second
call goes on with what is missing. ``edit_defaults.json`` in the folder has all outcomes, and what bias and scale do.

The rule by which a default is kept or changed (written before the bundled model was trained): the other value replaces
it only if its mean test loss over the sites is lower with a 95% interval that excludes zero, and if it is lower on
average at the sites of the residual stream and at those of the branches alike. Otherwise the default stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from steerscope import SteeringConfig, load_model
from steerscope.experiments.carrying.jobs import OutOfTime
from steerscope.experiments.engine.candidate import Candidate, Outcome
from steerscope.experiments.engine.rate_grid import EDIT_START
from steerscope.files import json_text, write_text
from steerscope.models.load import LoadedModel
from steerscope.sites import parse_site
from studies.edits_trained import about, sweep_of
from studies.programs import parser_of, program

SITES = "21.resid_post,21.attn_out,21.mlp_out,27.resid_post,27.attn_out,27.mlp_out"
RANK = 8
# Whether there is a bias, and the scale; the default first.
VARIANTS = tuple(product((True, False), ("none", "rms")))
Key = tuple[str, bool, str]


def candidate(site: str, bias: bool, scale: str) -> Candidate:
    """Return one edit as the engine trains it.

    Args:
        site: Its site.
        bias: Whether the write has one.
        scale: ``none`` or ``rms``.

    Returns:
        The candidate; those of one variant and kind of site share where the search for a rate begins.
    """
    config = SteeringConfig(sites=site, rank=RANK, bias=bias, scale=scale)
    variant = f"{'bias' if bias else 'no bias'}, {scale}"
    return Candidate(f"{site}, {variant}", config, EDIT_START[scale], f"{parse_site(site).kind.value}, {variant}")


def contrasts(losses: Mapping[Key, Sequence[float]]) -> list[dict[str, Any]]:
    """Return what the value that is not the default changes, for bias and for scale.

    Args:
        losses: Test losses per seed, nats, by site, bias and scale; sites that lack a variant are left out.

    Returns:
        Per factor and group of sites (all, the stream, branches) the mean over sites of the other value's loss less the
        default's, each averaged over seeds and over the other factor, with a 95% interval (Student's t over sites), at
        how many sites the other value is better, and the mean difference with each seed: sites share training data, so
        that the interval does not hold what other seeds would change.
    """
    known = {key: np.array(own) for key, own in losses.items() if np.isfinite(own).all()}
    sites = [
        site
        for site in dict.fromkeys(key[0] for key in known)
        if all((site, *variant) in known for variant in VARIANTS)
    ]
    factors: dict[str, Callable[[str], np.ndarray]] = {
        "no bias": lambda site: np.mean([known[site, False, s] - known[site, True, s] for s in ("none", "rms")], 0),
        "rms": lambda site: np.mean([known[site, b, "rms"] - known[site, b, "none"] for b in (True, False)], 0),
    }
    stream = [site for site in sites if parse_site(site).kind.value.startswith("resid")]
    groups = {"all": sites, "stream": stream, "branches": [site for site in sites if site not in stream]}
    rows = []
    for (factor, difference_at), (group, own) in product(factors.items(), groups.items()):
        if len(own) < 2:
            continue
        each = np.array([difference_at(site) for site in own])  # site seed
        found = each.mean(1)
        half = float(stats.sem(found) * stats.t.ppf(0.975, len(found) - 1))
        rows.append(
            {
                "factor": factor,
                "sites": group,
                "number": len(own),
                "difference": float(found.mean()),
                "low": float(found.mean()) - half,
                "high": float(found.mean()) + half,
                "better": int((found < 0).sum()),
                "by_seed": each.mean(0).tolist(),
            }
        )
    return rows


def run(loaded: LoadedModel, task: str, sites: Sequence[str], out: Path, **given: Any) -> dict[str, Any]:
    """Train what is missing, and write what there is.

    Args:
        loaded: The model.
        task: A generated task.
        sites: Where to edit.
        out: The folder.
        given: ``steps``, ``batch_size``, ``seeds``, ``minutes``, ``progress``.

    Returns:
        What ``edit_defaults.json`` holds.
    """
    seeds = list(range(given.pop("seeds")))
    sweep = sweep_of(loaded, task, out, seeds, **given)
    found: dict[Key, Outcome] = {}
    for site in sites:
        candidates = [candidate(site, *variant) for variant in VARIANTS]
        try:
            outcomes = sweep.run(candidates, seeds)
        except OutOfTime:
            continue  # a site that is finished is read from the store
        found |= {(site, *variant): one for variant, one in zip(VARIANTS, outcomes, strict=True)}
    result = {
        **about(sweep, task),
        "rank": RANK,
        "seeds": seeds,
        "missing": [site for site in sites if (site, *VARIANTS[0]) not in found],
        "edits": [{"site": key[0], "bias": key[1], "scale": key[2], **one.as_dict()} for key, one in found.items()],
        "contrasts": contrasts({key: one.losses for key, one in found.items()}),
    }
    write_text(out / "edit_defaults.json", json_text(result))
    return result


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--task", default="twice")
    parser.add_argument("--sites", default=SITES)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    found = run(
        load_model(asked.model), asked.task, asked.sites.split(","), asked.out, steps=asked.steps,
        batch_size=asked.batch_size, seeds=asked.seeds, minutes=asked.minutes,
        progress=lambda what, done, of: print(f"{done}/{of} {what}", flush=True),
    )  # fmt: skip
    for row in found["contrasts"]:
        print(
            f"{row['factor']}, {row['sites']}: {row['difference']:+.3f} nats [{row['low']:+.3f}, "
            f"{row['high']:+.3f}], better at {row['better']} of {row['number']}"
        )
    print(f"missing: {found['missing']}; {asked.out / 'edit_defaults.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
