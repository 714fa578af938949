"""What does an edit's place do: what it reads there, the layer it reads, or the layer it writes?

    python -m studies.read_write MODEL --task TASK --reads 1,4,7,10 --writes 1,4,7,10,13 --out FOLDER --budget 30

An edit at a site does three things at once: it reads a tensor of a layer, writes into the residual stream there, and
leaves the blocks above to go on from it. This trains edits that read at one layer and write at the same or a later
one: what they add to the stream after block ``b`` is ``U D x + c`` of rank 8, where ``x`` is read at block ``a <= b``:

- ``block``: the stream after the block, which a post-block edit reads;
- ``mlp``: the MLP's output, which a post-MLP edit reads (it adds to the same stream, so at ``a = b`` it is one);
- ``mid``: the stream between attention and MLP;
- ``both``: the last two side by side, which contains each of the others.

Reads are divided by their root mean square over tokens. Every cell has a learning rate of its own, found on selection
examples, and several seeds; runs are kept as they end, and a second call goes on with what is missing.
``read_write.json`` in the folder has all outcomes, and how much each of the three factors does while the others stay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from steerscope import load_model
from steerscope.errors import InputError
from steerscope.experiments.carrying.jobs import OutOfTime
from steerscope.experiments.engine.candidate import Candidate, Outcome
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.pack import Pack
from steerscope.experiments.engine.rate_grid import EDIT_START
from steerscope.experiments.engine.spec import RunSpec
from steerscope.files import json_text, write_text
from steerscope.models.hooks import edited
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.sites import Site, SiteKind
from studies.edits_trained import about, sweep_of
from studies.programs import parser_of, program

READS = {
    "block": (SiteKind.RESID_POST,),
    "mlp": (SiteKind.MLP_OUT,),
    "mid": (SiteKind.RESID_MID,),
    "both": (SiteKind.RESID_MID, SiteKind.MLP_OUT),
}
RANK = 8


@dataclass(frozen=True)
class Cell:
    """One edit of the factorial: what it reads, at which block, and after which block it writes."""

    read: str
    reads_at: int
    writes_at: int

    @property
    def name(self) -> str:
        """As results call it, ``4.mlp>7``."""
        return f"{self.reads_at}.{self.read}>{self.writes_at}"


class ReadWriteEdit(nn.Module):
    """A model with one edit that reads at a block and writes at the same or a later one.

    Args:
        loaded: The model, which stays as it is.
        cell: The edit.
        scales: Root mean square of what sites read, by name.
        seed: Of ``D``; ``U`` and the bias are zero at first, so that the model is as it was.
    """

    def __init__(self, loaded: LoadedModel, cell: Cell, scales: Mapping[str, float], seed: int) -> None:
        super().__init__()
        self.base_model, self.site_map, self.cell = loaded.model, loaded.site_map, cell
        self.sites = tuple(Site(cell.reads_at, kind) for kind in READS[cell.read])
        self.scales = tuple(scales[str(site)] for site in self.sites)
        width = loaded.site_map.d_model
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(RANK, width * len(self.sites), generator=generator) / math.sqrt(width * len(self.sites))
        self.D, self.U, self.c = (nn.Parameter(t) for t in (start, torch.zeros(width, RANK), torch.zeros(width)))

    def forward(self, **given: Any) -> Any:
        """Run the model with the edit."""
        found: dict[Site, Tensor] = {}

        def keep(site: Site, x: Tensor) -> Tensor:
            found[site] = x
            return x.new_zeros(x.shape[-1])

        def write(x: Tensor) -> Tensor:
            own = {**found, target: x}
            read = [own[site] / scale for site, scale in zip(self.sites, self.scales, strict=True)]
            return (torch.cat(read, -1) @ self.D.T) @ self.U.T + self.c

        target = Site(self.cell.writes_at, SiteKind.RESID_POST)
        edits: dict[Site, Callable[[Tensor], Tensor]] = {
            site: partial(keep, site) for site in self.sites if site != target
        }
        with edited(self.base_model, self.site_map, {**edits, target: write}):
            return self.base_model(**given)


def cells_of(reads: Iterable[int], writes: Iterable[int]) -> list[Cell]:
    """Return every edit that reads no later than it writes.

    Args:
        reads: Blocks to read at.
        writes: Blocks to write after.
    """
    return [
        Cell(read, a, b)
        for b, a in itertools.product(sorted(set(writes)), sorted(set(reads)))
        if a <= b
        for read in READS
    ]


def candidate(loaded: LoadedModel, cell: Cell, scales: Mapping[str, float], pad: int) -> Candidate:
    """Return a cell as the engine trains it.

    Args:
        loaded: The model.
        cell: The edit.
        scales: Root mean square of what sites read, by name.
        pad: Any token to fill with.
    """

    def build(learning_rate: float, seed: int) -> tuple[Pack, Callable[[], object]]:
        model = ReadWriteEdit(loaded, cell, scales, seed).eval()
        return ModelPack(model, RunSpec(None, learning_rate, seed), pad), lambda: None

    return Candidate(cell.name, None, EDIT_START["rms"], cell.read, build)


def contrasts(outcomes: Mapping[Cell, np.ndarray]) -> list[dict[str, Any]]:
    """Return what each factor does while the other two stay as they are.

    Args:
        outcomes: Test losses ``(seed)`` per cell, nats; cells without an outcome are left out.

    Returns:
        One row per pair of levels: the mean difference in loss of the second level minus the first over all settings of
        the other factors, with its 95% interval (Student's t over settings, each the mean over seeds, the seeds' own
        spread in quadrature), and in how many settings the second one is better.
    """
    rows = []
    factors: dict[str, Callable[[Cell], Any]] = {
        "what is read": lambda cell: cell.read,
        "layer read": lambda cell: cell.reads_at,
        "layer written": lambda cell: cell.writes_at,
    }
    for factor, of in factors.items():
        others = [other for name, other in factors.items() if name != factor]
        levels = list(dict.fromkeys(of(cell) for cell in outcomes))
        for first, second in itertools.combinations(levels, 2):
            by_setting: dict[Any, dict[Any, np.ndarray]] = {}
            for cell, losses in outcomes.items():
                by_setting.setdefault(tuple(other(cell) for other in others), {})[of(cell)] = losses
            pairs = [(own[first], own[second]) for own in by_setting.values() if first in own and second in own]
            if len(pairs) < 2:
                continue
            differences = np.array([after - before for before, after in pairs])  # setting seed
            means = differences.mean(1)
            seeds = differences.mean(0)
            error = math.hypot(stats.sem(means), stats.sem(seeds) if len(seeds) > 1 else 0.0)
            half = error * float(stats.t.ppf(0.975, len(pairs) - 1))
            rows.append(
                {
                    "factor": factor, "first": first, "second": second, "settings": len(pairs),
                    "difference": float(means.mean()), "low": float(means.mean() - half),
                    "high": float(means.mean() + half), "second_better": int((means < 0).sum()),
                }
            )  # fmt: skip
    return rows


def run(loaded: LoadedModel, task: str, reads: list[int], writes: list[int], out: Path, **given: Any) -> dict[str, Any]:
    """Train what is missing, and write what there is.

    Args:
        loaded: The model.
        task: A generated task.
        reads: Blocks to read at.
        writes: Blocks to write after.
        out: The folder.
        given: ``steps``, ``batch_size``, ``seeds``, ``minutes``, ``progress``.

    Returns:
        What ``read_write.json`` holds.

    Raises:
        InputError: No such blocks.
    """
    blocks = len(loaded.site_map.blocks)
    if wrong := [layer for layer in (*reads, *writes) if not 0 <= layer < blocks]:
        raise InputError(f"the model has blocks 0 to {blocks - 1}; got {wrong[0]}. Name some of those.")
    seeds, pad = list(range(given.pop("seeds"))), pad_token(loaded.tokenizer, loaded.model)
    sweep = sweep_of(loaded, task, out, seeds, **given)
    cells = cells_of(reads, writes)
    found: dict[Cell, Outcome] = {}
    for cell in cells:
        try:
            (found[cell],) = sweep.run([candidate(loaded, cell, sweep.scales, pad)], seeds)
        except OutOfTime:
            continue  # one that is finished is read from the store
    result = {
        **about(sweep, task),
        "rank": RANK,
        "missing": [cell.name for cell in cells if cell not in found],
        "cells": [
            {"read": cell.read, "reads_at": cell.reads_at, "writes_at": cell.writes_at, **one.as_dict()}
            for cell, one in found.items()
        ],
        "contrasts": contrasts(
            {cell: np.array(one.losses) for cell, one in found.items() if np.isfinite(one.losses).all()}
        ),
    }
    write_text(out / "read_write.json", json_text(result))
    return result


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", default="compare_next")
    parser.add_argument("--reads", default="1,4,7,10")
    parser.add_argument("--writes", default="1,4,7,10,13")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=30, help="minutes")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    reads, writes = ([int(part) for part in text.split(",")] for text in (asked.reads, asked.writes))
    loaded = load_model(asked.model)
    found = run(
        loaded, asked.task, reads, writes, asked.out, steps=asked.steps, batch_size=asked.batch_size,
        seeds=asked.seeds, minutes=asked.budget,
    )  # fmt: skip
    for row in found["contrasts"]:
        print(
            f"{row['factor']}: {row['first']} -> {row['second']}: {row['difference']:+.3f} nats "
            f"[{row['low']:+.3f}, {row['high']:+.3f}], better in {row['second_better']} of {row['settings']}"
        )
    print(f"{len(found['missing'])} cells missing; {asked.out / 'read_write.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
