"""Which of two places is better at the same layer? Paired differences over layers and seeds of kept site tables.

    python -m studies.paired_places studies/site_tables/*.json --json studies/results/paired_places.json

For every table and pair of kinds (by default post-MLP against post-block, and what lies near): the loss of the first
minus that of the second at every layer that has both, seed by seed, because runs of one seed saw the same batches. The
mean has a 95% interval in which whole layers count as one draw each and seeds as another; the test flips the sign of
whole layers (exact up to 16 layers, 100,000 draws above), and so asks whether layers like these prefer one of the two.
Neighbouring layers may be alike: their correlation is given. With a high one the interval is too narrow and the p-value
too small, and the second one counts, for which three neighbours flip together.

Layers at which neither place learned more than a recalibrated output (``SiteTable.base``) show nothing of places; the
last columns leave them out.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from steerscope.errors import InputError
from steerscope.experiments.agreement.correlations import Array
from steerscope.experiments.site_tables import SiteTable
from steerscope.experiments.site_tables.common import common_outcomes
from steerscope.files import write_text
from studies.kinds_compared import KindsCompared, kinds_compared, rows_of
from studies.programs import parser_of, program

PAIRS = (
    ("mlp_out", "resid_post"), ("attn_out", "resid_post"), ("resid_mid", "resid_post"), ("mlp_out", "attn_out"),
    ("mlp_hidden", "mlp_out"),
)  # fmt: skip
EXACT_LAYERS, DRAWS = 16, 100_000
# Neighbouring layers that flip together in the careful test.
TOGETHER = 3


@dataclass(frozen=True)
class LayerDifference:
    """Two places at one layer: mean test losses over seeds, nats, and their difference with its standard error."""

    layer: int
    first: float
    second: float
    difference: float
    error: float


@dataclass(frozen=True)
class PairedPlaces:
    """Two kinds of site at the layers that have both.

    Attributes:
        compared: Means, median, interval and layers won.
        seeds: How many.
        p: Of the sign-flip test, two-sided.
        p_threes: The same with three neighbouring layers flipped together.
        neighbours: Correlation of a layer's difference with that of the next layer of the table; None from fewer than
            four layers, or where all differ alike.
        layers: Layer by layer.
    """

    compared: KindsCompared
    seeds: int
    p: float
    p_threes: float
    neighbours: float | None
    layers: tuple[LayerDifference, ...]


def paired(losses: Mapping[tuple[int, str], Array], first: str, second: str) -> PairedPlaces | None:
    """Compare two kinds of site layer by layer.

    Args:
        losses: Trained losses ``(seed)`` by layer and kind, nats; infinite where a run diverged.
        first: One kind.
        second: The other.

    Returns:
        First minus second: below 0 the first is better. None with fewer than two layers that have both.
    """
    compared = kinds_compared(losses, first, second)
    if compared is None:
        return None
    layers, rows = rows_of(losses, first, second)
    differences = rows[::2] - rows[1::2]  # layer seed
    means, seeds = differences.mean(1), differences.shape[1]
    errors = np.full(len(layers), math.nan)
    if seeds > 1:
        # The variance from a few seeds is near 0 by chance somewhere: half of it is the mean over layers.
        own = differences.var(1, ddof=1)
        errors = np.sqrt((own + own.mean()) / 2 / seeds)
    told = tuple(
        LayerDifference(layer, float(a), float(b), float(a - b), float(error))
        for layer, a, b, error in zip(layers, rows[::2].mean(1), rows[1::2].mean(1), errors, strict=True)
    )
    threes = np.add.reduceat(means, range(0, len(means), TOGETHER))
    return PairedPlaces(compared, seeds, sign_flip(means), sign_flip(threes), _neighbours(means), told)


def sign_flip(means: Array, seed: int = 0) -> float:
    """Return the two-sided p-value of a mean of 0, by flipping the sign of whole layers.

    Args:
        means: One difference per layer.
        seed: Of the draws, where there are too many layers for all flips.
    """
    count = len(means)
    if count <= EXACT_LAYERS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(DRAWS, count))
        extra = 1  # the flips as they are count as one draw
    reached = np.abs(signs @ means) >= abs(means.sum()) * (1 - 1e-12)
    return float((reached.sum() + extra) / (len(signs) + extra))


def _neighbours(means: Array) -> float | None:
    if len(means) < 4 or means[:-1].std() == 0 or means[1:].std() == 0:
        return None
    return float(np.corrcoef(means[:-1], means[1:])[0, 1])


def losses_of(table: SiteTable, *, learned: bool = False) -> dict[tuple[int, str], Array]:
    """Return a table's trained losses ``(seed)`` by layer and kind, of sites that were tested with the same seeds.

    Args:
        table: The table.
        learned: Leave out layers at which no kind ended below the loss of a recalibrated output.
    """
    found = {(one.site.layer, str(one.site.kind)): np.array(one.losses) for one in common_outcomes(table).outcomes}
    if not learned:
        return found
    best: dict[int, float] = {}
    for (layer, _), losses in found.items():
        best[layer] = min(best.get(layer, math.inf), float(losses.mean()))
    return {key: losses for key, losses in found.items() if best[key[0]] < table.base.recalibrated_loss}


def compared_pairs(
    table: SiteTable, pairs: Sequence[tuple[str, str]] = PAIRS
) -> list[tuple[PairedPlaces, PairedPlaces | None]]:
    """Return every pair of kinds that a table has at two layers or more, each over all layers and over learned ones.

    Args:
        table: The table.
        pairs: Kinds of site to compare.
    """
    found = []
    for first, second in pairs:
        every = paired(losses_of(table), first, second)
        if every is not None:
            own = {key: one for key, one in losses_of(table, learned=True).items() if key[1] in (first, second)}
            found.append((every, paired(own, first, second)))
    return found


def markdown(tables: Mapping[str, SiteTable], pairs: Sequence[tuple[str, str]] = PAIRS) -> str:
    """Return a table of all pairs and one of the first pair's layers.

    Args:
        tables: By name.
        pairs: Kinds of site to compare; the layers are those of the first.
    """
    lines = [
        "| table | first - second | layers x seeds | nats [95%] | median | layers won | p | p, in threes | "
        "neighbours | learned alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    detail: list[str] = []
    for name, table in tables.items():
        for every, learned in compared_pairs(table, pairs):
            one = every.compared
            rest = "-"
            if learned is not None:
                rest = f"{_interval(learned.compared)}, p {learned.p:.3g} ({learned.compared.num_layers} layers)"
            near = "-" if every.neighbours is None else f"{every.neighbours:+.2f}"
            lines.append(
                f"| {name} | `{one.first}` - `{one.second}` | {one.num_layers} x {every.seeds} | {_interval(one)} | "
                f"{one.median:+.3f} | {one.first_better} : {one.second_better} | {every.p:.3g} | {every.p_threes:.3g} "
                f"| {near} | {rest} |"
            )
            if (one.first, one.second) == tuple(pairs[0]):
                told = ", ".join(f"{at.layer}: {at.difference:+.3f} ± {at.error:.3f}" for at in every.layers)
                detail.append(f"{name}, `{one.first}` - `{one.second}` by layer: {told}.")
    return "\n".join([*lines, "", *detail])


def _interval(one: KindsCompared) -> str:
    return f"{one.difference.value:+.3f} [{one.difference.low:+.3f}, {one.difference.high:+.3f}]"


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--pairs", nargs="+", default=[":".join(pair) for pair in PAIRS], help="kinds, FIRST:SECOND")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    if odd := [text for text in asked.pairs if text.count(":") != 1 or not all(text.split(":"))]:
        raise InputError(f"got the pair {odd[0]!r}; expected two kinds of site, such as mlp_out:resid_post.")
    pairs = [(first, second) for first, _, second in (text.partition(":") for text in asked.pairs)]
    tables = {path.stem: SiteTable.load(path) for path in asked.tables}
    print(markdown(tables, pairs))
    if asked.json is not None:
        kept = {
            name: [
                {"all": asdict(every), "learned": learned and {**asdict(learned), "layers": len(learned.layers)}}
                for every, learned in compared_pairs(table, pairs)
            ]
            for name, table in tables.items()
        }
        write_text(asked.json, json.dumps(_plain(kept), allow_nan=False) + "\n")


def _plain(value: object) -> object:
    """Return a value with numbers of five digits, None where they are not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    raise SystemExit(main())
