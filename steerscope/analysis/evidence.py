"""What training has said about scores so far, by the site tables kept beside the package, for every report to cite.

``evidence.json`` is written from the admitted tables of trained outcomes (docs/site_tables.md says how).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).with_name("evidence.json")


def known_evidence(score: str, path: Path = EVIDENCE) -> dict[str, Any] | None:
    """Return the kept studies of a score with a summary in words; ``None`` if it was never compared with training.

    Args:
        score: Name of a score.
        path: JSON file with one entry per study and score.

    Returns:
        ``summary``, a few sentences, and ``studies``, the entries of the file; ``None`` without any.
    """
    if not path.exists():
        return None
    studies = [one for one in json.loads(path.read_text(encoding="utf-8")) if one["score"] == score]
    if not studies:
        return None
    return {"summary": summary_of(studies), "studies": studies}


def summary_of(studies: list[dict[str, Any]]) -> str:
    """Return one sentence per study, and what they do not cover."""
    lines = ["Training elsewhere says how far to trust this score:"]
    lines += [_sentence(one) for one in studies]
    if not any(one["low"] > 0 for one in studies):
        lines.append("In none of them is it surely better than chance: take its order as a hypothesis.")
    elif not all(one["low"] > 0 for one in studies):
        lines.append("Not in all of them is it surely better than chance: take its order as a hypothesis.")
    lines.append("On this model and task it is a prediction; steerscope validate tests it.")
    return " ".join(lines)


def _sentence(one: dict[str, Any]) -> str:
    limit = "" if one["attainable"] is None else f"; {one['attainable']:.2f} is attainable with this training noise"
    return (
        f"{one['model']} on {one['task']}, {one['n_sites']} sites: Spearman correlation with trained held-out loss "
        f"{one['spearman']:.2f} ({one['low']:.2f} to {one['high']:.2f}), the best plain baseline ({one['baseline']}) "
        f"{one['baseline_spearman']:.2f}{limit}."
    )
