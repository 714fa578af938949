"""What training has said about scores so far, by the site tables kept beside the package, for every report to cite.

``evidence.json`` is written from the tables of trained outcomes (docs/site_tables.md says how): those that may judge
scores, and those that may not, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerscope.analysis.data.examples import Example
from steerscope.analysis.provenance import hash_of
from steerscope.analysis.result_parts import Evidence, ReferenceLoss, TrainedPoint
from steerscope.model_identity import ModelIdentity

EVIDENCE = Path(__file__).with_name("evidence.json")
# Of a table, what every line on one of its scores holds too.
_SHARED = ("model", "sha256", "layout", "task", "n_sites", "n_seeds", "admitted", "why_not", "attainable", "baseline",
           "baseline_spearman", "before", "best")  # fmt: skip


def known_evidence(score: str, path: Path = EVIDENCE) -> Evidence | None:
    """Return what site tables say of a score; ``None`` if it was never compared with training.

    Args:
        score: Name of a score.
        path: JSON file of site tables, in short.

    Returns:
        ``summary``, a sentence per line, and ``studies``: a line for every table and every number of output directions
        (``n_probes``) that its sites were ranked with; ``None`` without any.
    """
    studies = [line for table in _tables(path) for line in _lines(table, score)]
    return Evidence(summary=summary_of(studies), studies=tuple(studies)) if studies else None


def evidence_for(
    score: str, model: ModelIdentity, task: str | None, scored: Iterable[tuple[str, float]], path: Path = EVIDENCE
) -> Evidence | None:
    """Return :func:`known_evidence`, with what training came to at this model's sites on this task, if it was trained.

    Args:
        score: Name of a score.
        model: Which model: its ``sha256`` counts, because a name is where its user keeps it.
        task: Name of the registered task that drew the examples (:func:`drawn_from`), if one did.
        scored: Names of sites, and what a linear edit there scores.
        path: JSON file of site tables, in short.

    Returns:
        ``summary`` and ``studies``; and ``points``, the sites that were trained at, with score and test losses, and
        ``references``, the loss of the untrained model. ``None`` if the score was never compared with training.
    """
    found = known_evidence(score, path)
    own = [one for one in _tables(path) if is_of(one, model, task)]
    if found is None or not own:
        return found
    # Of several tables the one with the most sites.
    table = max(own, key=lambda one: int(one["n_sites"]))
    points = tuple(
        TrainedPoint(site, value, *table["trained"][site]) for site, value in scored if site in table["trained"]
    )
    return replace(found, points=points, references=(ReferenceLoss("no training", table["before"]["loss"]),))


def drawn_mark(task: str, example: Example) -> str:
    """Return what an example carries that a registered task drew: a hash of the task's name and of the example.

    Args:
        task: Name of the task.
        example: Its example.

    Returns:
        A hexadecimal SHA-256 digest.
    """
    return hash_of(task, example.prompt, example.completion, *(example.choices or ()))


def drawn_from(task: str, examples: Sequence[Example]) -> str | None:
    """Return the task's name if the registered task of that name drew all examples; a name alone proves nothing.

    Args:
        task: What the task is called; a user's own file may be called so, too.
        examples: What is ranked with.

    Returns:
        The name, or ``None``.
    """
    return task if all(getattr(one, "drawn", "") == drawn_mark(task, one) for one in examples) else None


def is_of(line: Mapping[str, Any], model: ModelIdentity, task: str | None) -> bool:
    """Say whether a table, or a line of one, is of a model and a task.

    Args:
        line: The table or line.
        model: Which model.
        task: Name of the registered task that drew the examples (:func:`drawn_from`), if one did.

    Returns:
        Whether weights and task are the same, and the rest of the model's folder where the table knows it.
    """
    same_setup = not line.get("setup") or line["setup"] == model.setup
    return same_setup and (line.get("sha256"), line["task"]) == (model.sha256, task)


def ranked_alike(studies: Sequence[Mapping[str, Any]], n_probes: int | None) -> list[Mapping[str, Any]]:
    """Return one line per table, that of the ranking whose number of output directions is nearest to a given one.

    Args:
        studies: Lines of one score.
        n_probes: The number; without it a table's first line is taken.

    Returns:
        The lines, tables in the order in which they come.
    """
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for one in studies:
        key = (str(one["model"]), one["task"])
        if key not in found or _distance(one, n_probes) < _distance(found[key], n_probes):
            found[key] = one
    return list(found.values())


def _distance(line: Mapping[str, Any], n_probes: int | None) -> int:
    own = line.get("n_probes")
    return 0 if own is None or n_probes is None else abs(own - n_probes)


def _tables(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["tables"]) if path.exists() else []


def _lines(table: Mapping[str, Any], score: str) -> list[dict[str, Any]]:
    shared = {name: table[name] for name in _SHARED} | {"setup": table.get("setup", "")}
    return [
        {**shared, "score": score, "n_probes": one["n_probes"], **one["scores"][score]}
        for one in table["rankings"]
        if score in one["scores"]
    ]


def summary_of(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return one sentence per line, and how sure they are taken together."""
    counted = [one for one in studies if one["admitted"]]
    lines = ["Training says how far to trust this score:", *map(_sentence, studies)]
    if not counted:
        lines.append("No table of trained outcomes that may judge scores has it yet: take its order as a hypothesis.")
    elif not all(one["low"] > 0 for one in counted):
        which = "all" if any(one["low"] > 0 for one in counted) else "any"
        lines.append(
            f"It is not surely better than chance in {which} of those that may judge: take it as a hypothesis."
        )
    return " ".join(lines)


def _sentence(one: Mapping[str, Any]) -> str:
    limit = "" if one["attainable"] is None else f"; {one['attainable']:.2f} is attainable with this training noise"
    may = "" if one["admitted"] else ", in a table that may not judge scores"
    return (
        f"{one['model']} on {one['task']}, {one['n_sites']} sites ranked with {one['n_probes']} output directions: "
        f"Spearman correlation with trained held-out loss {one['spearman']:.2f} ({one['low']:.2f} to "
        f"{one['high']:.2f}), {one['baseline']} {one['baseline_spearman']:.2f}{limit}{may}."
    )
