"""What a group of runs says of a claim: its links one by one, and the claim, which holds only if all of them do.

A claim of several links is reproduced if all are, not reproduced if one is not, else undecided; so if every link errs
with at most 2.5%, it is called reproduced wrongly with at most 2.5%, and not reproduced wrongly with at most 2.5% for
each link. A link without runs is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studies.claims.convergence import FALLING, end_of
from studies.claims.groups import Group
from studies.claims.learned import Admission, admission, has_learned
from studies.claims.power import Power, power_of
from studies.claims.rule import NOT, REPRODUCED, UNDECIDED, WITHIN, Difference, Verdict, difference, verdict, why_unfair
from studies.claims.sections import Pair, Section


@dataclass(frozen=True)
class Row:
    """One comparison: a link of a claim (by name), or a row apart."""

    pair: Pair
    link: tuple[str, str] | None
    found: Difference | None
    verdict: Verdict

    @property
    def at_equal_parameters(self) -> bool:
        """Whether this is a row apart that compares with LoRA of another rank for its size."""
        first, second = self.pair.first, self.pair.second
        return second.method == "lora" and first.rank != second.rank and self.pair.equal_parameters

    @property
    def power(self) -> Power | None:
        """What would decide it, where the interval alone leaves it undecided."""
        open_ = self.verdict.kind == UNDECIDED and self.verdict.reason in ("", WITHIN)
        return power_of(self.found, strict=self.pair.strict) if open_ and self.found else None


@dataclass(frozen=True)
class Outcome:
    """What one group says of one claim.

    Attributes:
        section: The claim.
        group: The group.
        admission: Whether the group may decide.
        links: Rows of the claim's links that there are runs for, in the order of the claim.
        missing: Links that there are none for.
        apart: Other rows.
        kind: The verdict on the claim.
    """

    section: Section
    group: Group
    admission: Admission
    links: tuple[Row, ...]
    missing: tuple[tuple[str, str], ...]
    apart: tuple[Row, ...]
    kind: str


def outcome(section: Section, group: Group) -> Outcome | None:
    """Return what a group says of a claim, or ``None`` where it has no pair of it."""
    rows = [_row(pair, section.link(pair), group) for pair in section.pairs(group.entries)]
    if not rows:
        return None
    links = [row for name in section.links if (row := _of_link(name, rows)) is not None]
    missing = tuple(name for name in section.links if name not in [row.link for row in links])
    apart = tuple(row for row in rows if row not in links)
    admitted = admission(group)
    kind = (
        conjunction([row.verdict.kind for row in links] + [UNDECIDED] * len(missing)) if admitted.holds else UNDECIDED
    )
    return Outcome(section, group, admitted, tuple(links), missing, apart, kind)


def conjunction(kinds: Sequence[str]) -> str:
    """Return the verdict on a claim whose links have these, of which there is at least one."""
    if NOT in kinds:
        return NOT
    return REPRODUCED if all(kind == REPRODUCED for kind in kinds) else UNDECIDED


def _of_link(name: tuple[str, str], rows: Sequence[Row]) -> Row | None:
    """Return the row of a link: of several, what was searched alike, then what has most seeds; never by its outcome."""
    own = [row for row in rows if row.link == name]
    return max(
        own,
        key=lambda row: (not why_unfair(row.pair.first, row.pair.second), row.found.seeds if row.found else 0),
        default=None,
    )


def _row(pair: Pair, link: tuple[str, str] | None, group: Group) -> Row:
    found = difference(pair.first, pair.second)
    return Row(pair, link, found, verdict(found, strict=pair.strict, blocked=_blocked(pair, group, found)))


def _blocked(pair: Pair, group: Group, found: Difference | None) -> str:
    """Return why a comparison decides nothing, or nothing: what counts against one side counts against the other."""
    if unfair := why_unfair(pair.first, pair.second):
        return unfair
    behind, which = (pair.first, "first") if found and found.mean < 0 else (pair.second, "second")
    end = end_of(behind)
    if end is not None and end.word == FALLING:
        return f"the {which} is behind and was still learning when training ended"
    if group.untrained is None:
        return ""
    damaged = [
        which
        for which, side in (("first", pair.first), ("second", pair.second))
        if side.high < group.untrained.accuracy
    ]
    if damaged:
        return f"training left the {' and the '.join(damaged)} below the untrained model"
    if not (has_learned(pair.first, group) or has_learned(pair.second, group)):
        return "neither side learned more than a constant answer"
    return ""
