"""All propositions by number, the choice of some of them by name, and trying them on a subject."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

from steerscope.equivalence import propositions as _room
from steerscope.equivalence.propositions.base import Evidence, Proposition, Verdict, joined, verdict_of
from steerscope.equivalence.propositions.subject import Subject
from steerscope.errors import InputError, did_you_mean
from steerscope.finite import NotFiniteError

# Every file whose name begins with the numbers of its propositions.
_FILES = tuple(
    import_module(f"{_room.__name__}.{file.name}")
    for file in sorted(iter_modules(_room.__path__), key=lambda file: file.name)
    if re.match(r"p\d\d_", file.name)
)


@dataclass(frozen=True)
class Result:
    """What became of one proposition on one subject.

    Attributes:
        proposition: The statement.
        evidence: What the check found.
        verdict: What the evidence supports.
        seconds: Wall time of the check.
    """

    proposition: Proposition
    evidence: Evidence
    verdict: Verdict
    seconds: float


def all_propositions() -> tuple[Proposition, ...]:
    """Return all 46 propositions, by number."""
    found = [proposition for file in _FILES for proposition in file.PROPOSITIONS]
    return tuple(sorted(found, key=lambda proposition: proposition.number))


def file_names() -> dict[str, str]:
    """Return the name of the file that holds each proposition, by the proposition's name, in the order of numbers."""
    found = {p: f"{file.__name__.rpartition('.')[2]}.py" for file in _FILES for p in file.PROPOSITIONS}
    return {p.name: found[p] for p in all_propositions()}


def propositions(names: str | Iterable[str] | None = None) -> tuple[Proposition, ...]:
    """Return the propositions of the given names, by number, each once.

    Args:
        names: ``"P7,P12"`` or ``["P7", "P12"]``; case does not matter. All unless given.

    Raises:
        InputError: No name, or one that no proposition has.
    """
    if names is None:
        return all_propositions()
    every = {proposition.name: proposition for proposition in all_propositions()}
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    wanted = [name for name in wanted if name]
    if not wanted:
        raise InputError(f"no proposition named in {names!r}; expected names such as P7,P12.")
    for name in wanted:
        if name.upper() not in every:
            first, last = min(every.values(), key=_by_number).name, max(every.values(), key=_by_number).name
            raise InputError(
                f"unknown proposition {name!r}.{did_you_mean(name.upper(), list(every))} "
                f"There are {first} to {last}; separate several by commas: P7,P12."
            )
    chosen = {name.upper() for name in wanted}
    return tuple(proposition for name, proposition in every.items() if name in chosen)


def _by_number(proposition: Proposition) -> int:
    return proposition.number


def run(
    subject: Subject | Sequence[Subject],
    propositions: Iterable[Proposition],
    progress: Callable[[Result], None] | None = None,
) -> tuple[Result, ...]:
    """Try propositions on a subject, or on several at once, in their order.

    On several subjects a proposition has one result: every measurement on every one of them counts.

    A check that raises counts as failed, with the exception's text as a note: a statement that could not be
    checked has not been shown. Numbers of the subject that are NaN or infinite end the run.

    Args:
        subject: What to try them on; several of them have different names.
        propositions: Which.
        progress: Called with every result as soon as it is there.

    Returns:
        One result per proposition, in the same order.

    Raises:
        InputError: The subject's numbers are NaN or infinite.
    """
    subjects = (subject,) if isinstance(subject, Subject) else tuple(subject)
    results = []
    for proposition in propositions:
        result = _tried(subjects, proposition)
        if progress is not None:
            progress(result)
        results.append(result)
    return tuple(results)


def _tried(subjects: Sequence[Subject], proposition: Proposition) -> Result:
    start = time.perf_counter()
    try:
        found = {}
        for subject in subjects:
            with subject.ready():
                found[subject.name] = proposition.check(subject)
        evidence = joined(found)
        verdict = verdict_of(evidence)
    except NotFiniteError:
        raise  # nothing about the statement: the subject has no numbers to try it on
    except Exception as error:
        evidence = Evidence(notes=(f"the check raised {type(error).__name__}: {error}",))
        verdict = Verdict.FAILS
    return Result(proposition, evidence, verdict, time.perf_counter() - start)
