"""Subjects, verdicts and mutations: what every group of propositions is tried with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from steerscope.equivalence.propositions.base import Evidence, Proposition, Verdict, verdict_of
from steerscope.equivalence.propositions.subject import Subject, random_subject, subject_of
from tests.tiny import LAYOUTS, tiny_model

HOLDS, FAILS, CORRECTED, NOT_APPLICABLE = Verdict.HOLDS, Verdict.FAILS, Verdict.CORRECTED, Verdict.NOT_APPLICABLE
SEEDS = (0, 1)
FAMILIES = (*LAYOUTS, "olmo2")


@cache
def random_blocks(seed: int) -> Subject:
    return random_subject(seed)


@cache
def tiny_blocks(family: str) -> Subject:
    return subject_of(tiny_model(family, torch.float64), name=f"tiny {family}")


def evidence(proposition: Proposition, subject: Subject) -> Evidence:
    with subject.ready():
        return proposition.check(subject)


def verdicts(propositions: Iterable[Proposition], subject: Subject) -> dict[int, Verdict]:
    return {p.number: verdict_of(evidence(p, subject)) for p in propositions}


def by_number(propositions: Iterable[Proposition], number: int) -> Proposition:
    return next(p for p in propositions if p.number == number)


def verdict(proposition: Proposition, subject: Subject) -> Verdict:
    return verdict_of(evidence(proposition, subject))


def by_name(propositions: Iterable[Proposition]) -> dict[str, Proposition]:
    return {proposition.name: proposition for proposition in propositions}


def assert_verdict(proposition: Proposition, subject: Subject, expected: Verdict) -> None:
    found = evidence(proposition, subject)
    rows = [*found.claim, *found.controls, *found.published]
    told = "\n".join(f"  {m.name}: {m.value:.3g}, expected {m.expected()}" for m in rows)
    assert verdict_of(found) is expected, f"{proposition.name} on {subject.name}:\n{told or found.inapplicable}"


def fingerprint(subject: Subject) -> list[tuple[str, int, int]]:
    """Name, place in memory and version of every weight: the same list means nothing was changed."""
    return [(n, p.data_ptr(), p._version) for n, p in subject.model.named_parameters()]
