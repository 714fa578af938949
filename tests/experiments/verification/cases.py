"""A few propositions of the tests' own, and a verification with every measurement, on a tiny model."""

from __future__ import annotations

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Series, Source
from steerscope.equivalence.propositions.subject import Subject
from steerscope.experiments.verification.run import VerifyOptions

SMALL = VerifyOptions(rows=12, few_rows=2, pool=120, steps=2, batch_size=4, layers=2, few_layers=1, positions=1)


def _right(subject: Subject) -> Evidence:
    size = float(subject.draw(4).norm())
    return Evidence(
        claim=(Measurement("norm of a draw", size, high=100.0), Measurement("zero", 0.0, high=1e-12)),
        controls=(Measurement("far outside", 1e3, high=100.0),),
        series={"error | size": Series("size | relative", "error", (1e-3, 1e-2, 1e-1), (1e-6, 1e-4, 1e-2))},
        notes=("a <b>note</b>",),
    )


def _wrong(subject: Subject) -> Evidence:
    return Evidence(
        claim=(Measurement("two", 2.0, 1.9, 2.1), Measurement("slope", 1.0, 1.95, 2.05)),
        controls=(Measurement("c", 0.0, 1.95, 2.05),),
    )


def _corrected(subject: Subject) -> Evidence:
    return Evidence(
        claim=(Measurement("right form", 1e-15, high=1e-12),),
        controls=(Measurement("c", 1.0, high=1e-12),),
        published=(Measurement("published form", 163.0, high=1e-12),),
    )


def _not_applicable(subject: Subject) -> Evidence:
    return Evidence(inapplicable="there is no gate")


def _nan(subject: Subject) -> Evidence:
    nan = float("nan")
    return Evidence(
        claim=(Measurement("nothing", nan, high=1.0),),
        controls=(Measurement("c", 2.0, high=1.0),),
        series={"c": Series("x", "y", (1.0, 2.0), (nan, 1.0))},
    )


def proposition(number: int, check=_right, **words) -> Proposition:
    defaults = {"group": "parts", "title": f"statement {number}", "claim": "|a| <= b.", "assumptions": "none"}
    return Proposition(number, source=Source.OURS, check=check, **{**defaults, **words})


RIGHT = proposition(1)
CORRECTED = proposition(3, _corrected, published="Says A P; it is A (I - P).")
WRONG = proposition(7, _wrong)
NOT_APPLICABLE = proposition(12, _not_applicable, group="gates")
NAN = proposition(13, _nan, group="gates")
FINE = [RIGHT, CORRECTED, NOT_APPLICABLE]
EVERY = [*FINE, WRONG, NAN]
