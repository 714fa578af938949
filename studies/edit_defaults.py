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

import argparse
import math
import time
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
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.engine.sweep import Sweep
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.sweeping.preparing import read_scales
from steerscope.experiments.tasks import get_task
from steerscope.files import json_text, write_text
from steerscope.installed import package_versions
from steerscope.models.load import LoadedModel
from steerscope.sites import parse_site
from studies.programs import exit_code_of

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
        default's, each averaged over seeds and over the other factor, with a 95% interval (Student's t over sites), and
        at how many sites the other value is better.
    """
    mean = {key: float(np.mean(own)) for key, own in losses.items() if np.isfinite(own).all()}
    sites = [
        site for site in dict.fromkeys(key[0] for key in mean) if all((site, *variant) in mean for variant in VARIANTS)
    ]
    factors: dict[str, Callable[[str], float]] = {
        "no bias": lambda site: float(np.mean([mean[site, False, s] - mean[site, True, s] for s in ("none", "rms")])),
        "rms": lambda site: float(np.mean([mean[site, b, "rms"] - mean[site, b, "none"] for b in (True, False)])),
    }
    stream = [site for site in sites if parse_site(site).kind.value.startswith("resid")]
    groups = {"all": sites, "stream": stream, "branches": [site for site in sites if site not in stream]}
    rows = []
    for (factor, difference_at), (group, own) in product(factors.items(), groups.items()):
        if len(own) < 2:
            continue
        found = np.array([difference_at(site) for site in own])
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
    schedule = Schedule(steps=given["steps"], batch_size=given["batch_size"])
    data = SplitData(loaded, splits_of_task(get_task(task)), schedule, 128, 256)
    seeds = list(range(given["seeds"]))
    data.check(seeds)
    sweep = Sweep(
        loaded, data, schedule, RunStore(out / "runs"), read_scales(loaded, data, 0), progress=given.get("progress"),
        deadline=time.monotonic() + 60 * given["minutes"],
    )  # fmt: skip
    found: dict[Key, Outcome] = {}
    for site in sites:
        candidates = [candidate(site, *variant) for variant in VARIANTS]
        try:
            outcomes = sweep.run(candidates, seeds)
        except OutOfTime:
            continue  # a site that is finished is read from the store
        found |= {(site, *variant): one for variant, one in zip(VARIANTS, outcomes, strict=True)}
    base = sweep.untrained()
    result = {
        "model": loaded.identity.as_dict(),
        "task": task,
        "steps": schedule.steps,
        "batch_size": schedule.batch_size,
        "rank": RANK,
        "seeds": seeds,
        "untrained": {"loss": base.loss, "accuracy": base.accuracy},
        "missing": [site for site in sites if (site, *VARIANTS[0]) not in found],
        "edits": [{"site": key[0], "bias": key[1], "scale": key[2], **one.as_dict()} for key, one in found.items()],
        "contrasts": contrasts({key: one.losses for key, one in found.items()}),
        "versions": package_versions(),
    }
    write_text(out / "edit_defaults.json", json_text(result))
    return result


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--task", default="twice")
    parser.add_argument("--sites", default=SITES)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    def work() -> None:
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

    return exit_code_of("study", work)


if __name__ == "__main__":
    raise SystemExit(main())
