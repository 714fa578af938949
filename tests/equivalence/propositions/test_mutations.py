"""Every formula of the theory, made wrong, changes a verdict on the random blocks: no check is blind to its formula."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from steerscope.equivalence import closed_forms, divergence, oracles, subspaces
from steerscope.equivalence.propositions import catalogue
from steerscope.equivalence.propositions.base import Verdict, verdict_of
from steerscope.equivalence.propositions.catalogue import propositions
from steerscope.equivalence.propositions.subject import Subject, random_subjects
from tests.equivalence.propositions.mutations import MUTATIONS, Mutation

# Not formulas: they find or measure something, and say nothing that could be wrong of the theory alone.
NO_FORMULA = {"final_norm"}
# Propositions about whole data sets: their formulas are made wrong on smaller blocks, beside their other tests.
ON_OWN_BLOCKS = {43, 44, 45, 46}


@cache
def subjects() -> tuple[Subject, ...]:
    return random_subjects(0)


def verdict_on(subject: Subject, number: int) -> Verdict:
    (proposition,) = propositions(f"P{number}")
    with subject.ready():
        return verdict_of(proposition.check(subject))


right_verdict = cache(verdict_on)


def replace_everywhere(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    """Put the wrong formula wherever a module of the theory has bound the right one."""
    wrong = mutation.mutate(mutation.formula)
    for name, module in list(sys.modules.items()):
        if name.startswith("steerscope.equivalence"):
            for bound, value in list(vars(module).items()):
                if value is mutation.formula:
                    monkeypatch.setattr(module, bound, wrong)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_wrong_formula_changes_a_verdict(mutation: Mutation, monkeypatch: pytest.MonkeyPatch):
    for subject in subjects():
        right = right_verdict(subject, mutation.number)
        with monkeypatch.context() as patch:
            replace_everywhere(patch, mutation)
            if verdict_on(subject, mutation.number) is not right:
                return
    pytest.fail(f"{mutation.name}: no verdict on {', '.join(s.name for s in subjects())} changed")


def formulas() -> Iterator[str]:
    """Yield the public functions of the theory's modules: all but checks."""
    here = [file for file in catalogue._FILES if {p.number for p in file.PROPOSITIONS} - ON_OWN_BLOCKS]
    for module in (closed_forms, oracles, divergence, subspaces, *here):
        for name, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__
            if own and not name.startswith(("_", "check")):
                yield name


def test_every_formula_is_made_wrong_once():
    tried = {mutation.formula.__name__ for mutation in MUTATIONS}
    assert set(formulas()) - NO_FORMULA <= tried


def test_every_proposition_has_a_mutation():
    assert {mutation.number for mutation in MUTATIONS} == {one.number for one in propositions()} - ON_OWN_BLOCKS
