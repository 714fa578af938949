"""The summary of the page: each claim in a sentence, for the real model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from studies.claims.outcomes import Outcome, Row
from studies.claims.rule import NOT, REPRODUCED, UNDECIDED
from studies.claims.sections import RANK, SECTIONS, Section, name_of, trained_words
from studies.claims.tables import leftover_shares
from studies.claims.words import SPACES


def summary(outcomes: Sequence[Outcome], left: Sequence[Mapping[str, Any]]) -> str:
    """Return a list with a sentence for each claim.

    Args:
        outcomes: Of the groups that the summary is about.
        left: Measurements for claim (f) on their runs.
    """
    lines = [f"- {_sentence(section, [o for o in outcomes if o.section is section])}" for section in SECTIONS]
    return "\n".join([*lines, f"- {_of_spaces(left)}"]) + "\n"


def _sentence(section: Section, outcomes: Sequence[Outcome]) -> str:
    said = f"**({section.letter})** {section.title}"
    if not outcomes:
        return f"{said}: **no runs** of this model with today's prompts."
    counted = [one for one in outcomes if one.admission.holds]
    if not counted:
        return f"{said}: **undecided**, as no training with runs of it counts (see above)."
    if len(counted) == 1:
        word = f"**{counted[0].kind}**"
    else:
        counts = {kind: sum(one.kind == kind for one in counted) for kind in (REPRODUCED, NOT, UNDECIDED)}
        told = ", ".join(f"{kind} on {count}" for kind, count in counts.items() if count)
        word = f"**{told}** of {len(counted)} trainings"
    return f"{said}: {word}. {' '.join(_group(one) for one in counted)}"


def _group(one: Outcome) -> str:
    links = [f"{_words(row, row.link)} {row.found or '-'}, {row.verdict}" for row in one.links]
    links += [f"{first} against {second}: no runs" for first, second in one.missing]
    text = f"{one.group.title}: {'; '.join(links)}."
    sized = [row for row in one.apart if row.at_equal_parameters and name_of(row.pair.first) is not None]
    if sized:
        told = [f"{_words(row, None)} {row.found or '-'}, {row.verdict}" for row in sized]
        text += f" Apart, at equal parameters: {'; '.join(told)}."
    return text


def _words(row: Row, link: tuple[str, str] | None) -> str:
    first, second = link or (trained_words(row.pair.first), trained_words(row.pair.second))
    return f"{first} {'>' if row.pair.strict else '>='} {second}"


def _of_spaces(left: Sequence[Mapping[str, Any]]) -> str:
    said = f"**(f)** {SPACES}"
    means: dict[tuple[str, str], dict[str, float]] = {}
    for (task, _, method, kind, rank, *_), shares in leftover_shares(left).items():
        if rank == RANK:
            means.setdefault((task, method), {})[kind] = fmean(shares)
    if not means:
        return f"{said}: **no runs** of this model with today's prompts."
    told = [
        f"of {method} on {task}, {', '.join(f'{kind} {share:.0%}' for kind, share in sorted(own.items(), key=_second))}"
        for (task, method), own in means.items()
    ]
    return f"{said}: **measured**, not judged. Linear maps of rank {RANK} leave, {'; '.join(told)}."


def _second(pair: tuple[str, float]) -> float:
    return pair[1]
