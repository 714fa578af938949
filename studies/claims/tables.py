"""The tables of the page of claims: runs, comparisons, how trainings ended, and what spaces leave behind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from scipy.stats import t as student

from steerscope.analysis.provenance import model_key
from steerscope.experiments.comparison.groups import Entry
from steerscope.experiments.runs.folder import read_results
from studies.claims.convergence import Longer, end_of
from studies.claims.groups import Group
from studies.claims.outcomes import Outcome, Row
from studies.claims.power import chance_for_equals
from studies.claims.rule import MIN_SEEDS, is_interior
from studies.claims.sections import trained_words
from studies.programs import portable


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table.

    Args:
        head: Names of columns, parted by ``|``; one that ends with ``:`` is aligned to the right.
        rows: Cells.
    """
    names = [name.strip() for name in head.split("|")]
    line = "|".join("---:" if name.endswith(":") else "---" for name in names)
    lines = [f"| {' | '.join(name.rstrip(':') for name in names)} |", f"|{line}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


def runs_table(group: Group) -> str:
    """Return all configurations of a group with their accuracies, best first."""
    rows = []
    for entry in group.entries:
        seeds = ", ".join(map(str, entry.seeds))
        rows.append(
            (trained_words(entry), f"{entry.parameters:,}", _part(entry), seeds, f"{entry.accuracy:.1%}")
            + (_of_seeds(entry), f"[{entry.low:.1%}, {entry.high:.1%}]", _rates(entry))
        )
    head = "method | parameters: | part of the model: | seeds | accuracy: | 95% over seeds | 95% over questions"
    parts = [table(f"{head} | learning rate", rows)]
    if group.runs.data_note:
        parts.append(f"{group.runs.data_note}\n")
    command = portable(read_results(group.entries[0].folders[0]).command)
    if command:
        parts.append(f"One of the runs: `{command}`; the others differ in the method's options and the seed.\n")
    return "\n".join(parts)


def _of_seeds(entry: Entry) -> str:
    """Return Student's interval of the mean over seeds, as far as it is of shares."""
    if entry.spread is None or len(entry.seeds) < MIN_SEEDS:
        return "-"
    count = len(entry.seeds)
    half = float(student.ppf(0.975, count - 1)) * entry.spread / math.sqrt(count)
    return f"[{max(0, entry.accuracy - half):.1%}, {min(1, entry.accuracy + half):.1%}]"


def _part(entry: Entry) -> str:
    run = read_results(entry.folders[0])
    own = run.model.n_params
    return f"{run.trainable_parameters / own:.3%}"


def _rates(entry: Entry) -> str:
    """Return the rates of all seeds, whether they were searched for and interior, and with how many steps."""
    facts = [read_results(folder).training for folder in entry.folders]
    rates = ", ".join(dict.fromkeys(f"{one['learning_rate']:g}" for one in facts if "learning_rate" in one))
    if not rates:
        return "-"
    if entry.settings.get("learning_rate") != "auto":
        return f"{rates} (given)"
    short = entry.settings.get("lr_steps")
    length = f" with {short} steps" if short and short != entry.settings.get("steps") else ""
    return f"{rates} (searched{length}{'' if is_interior(entry) else ', at the edge of the budget'})"


def links_table(found: Outcome) -> str:
    """Return the links of a claim, each with its verdict, and those that no run tells of."""
    rows = [_cells(row) for row in found.links]
    sign = ">" if any(row.pair.strict for row in found.links) else ">="
    rows += [(f"{one} {sign} {other}", "-", "-", "no runs", "") for one, other in found.missing]
    return table("link | parameters | difference in points: | verdict | what would decide it", rows)


def rows_table(rows: Sequence[Row]) -> str:
    """Return comparisons that are not the claim."""
    return table("comparison | parameters | difference in points: | verdict | what would decide it", map(_cells, rows))


def _cells(row: Row) -> tuple[str, ...]:
    pair = row.pair
    words = f"{trained_words(pair.first)} {'>' if pair.strict else '>='} {trained_words(pair.second)}"
    parameters = f"{pair.first.parameters:,} : {pair.second.parameters:,}"
    power = str(row.power) if row.power else ""
    return words, parameters, str(row.found) if row.found else "-", str(row.verdict), power


def power_sentence(outcomes: Sequence[Outcome]) -> str:
    """Return how fine the comparisons of a group's links are, or nothing where none has an interval."""
    halves = [row.found.high - row.found.mean for one in outcomes for row in one.links if row.found]
    halves = [half for half in halves if math.isfinite(half)]
    if not halves:
        return ""
    usual, chance = median(halves), chance_for_equals(median(halves))
    return (
        f"Half an interval is {100 * usual:.1f} points, the median over {len(halves)} links: of two equal methods, "
        f"one would be found at least as good as the other in {chance:.0%} of such studies.\n"
    )


def ends_table(group: Group, longer: Sequence[Longer]) -> str:
    """Return how the training losses of a group ended and what longer runs reach, or that nothing was kept."""
    rows = []
    for entry in group.trained:
        end = end_of(entry)
        if end is not None:
            error = f" +- {end.half:.3f}" if math.isfinite(end.half) else ""
            fall = f"{end.before - end.last:+.3f}{error}"
            share = "-" if math.isnan(end.share) else f"{end.share:.0%}"
            losses = (f"{loss:.3f}" for loss in (end.first, end.before, end.last))
            rows.append((trained_words(entry), *losses, fall, share, end.word))
    if not rows:
        parts = ["Losses by step were not kept.\n"]
    else:
        head = "method | first tenth: | last but one: | last tenth: | fall over the last: | of the whole fall: | end"
        parts = [table(head, rows)]
    if longer:
        cells = [
            (
                one.words,
                " : ".join(map(str, one.steps)),
                " : ".join(f"{x:.1%}" for x in one.accuracies),
                one.gain or "-",
            )
            for one in longer
        ]
        parts.append(table("method | steps | accuracy | longer minus shorter in points:", cells))
    else:
        parts.append("No configuration was also trained for longer.\n")
    return "\n".join(parts)


def leftover_table(left: Sequence[Mapping[str, Any]]) -> str:
    """Return what each space leaves of the divergence from fine-tuned models."""
    rows = []
    for names, shares in leftover_shares(left).items():
        rows.append((*names[:5], len(shares), ", ".join(f"{x:.1%}" for x in shares), f"{fmean(shares):.1%}"))
    head = "task | model | fine-tuning | space | rank: | seeds: | divergence left (each seed) | mean:"
    return table(head, rows)


def leftover_shares(left: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[float]]:
    """Return, by task, model, fine-tuning, space and rank, the share that is left for each seed."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for one in sorted(left, key=lambda one: int(one["seed"])):
        for row in one["spaces"]:
            names = (one["task"], Path(str(one["model"]["name"])).name, one["method"], row["kind"], row["rank"])
            # Seeds of one model on one set of data; what is not in the table tells others apart.
            key = (*names, model_key(one["model"]), one.get("data"))
            found.setdefault(key, []).append(row["kl"] / one["kl_base"])
    return found
