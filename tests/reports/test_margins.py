"""The figure of margins shows errors that must be small, and nothing else."""

from __future__ import annotations

import math

import pytest

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, verdict_of
from steerscope.equivalence.propositions.catalogue import Result
from steerscope.errors import InputError
from steerscope.experiments.verification.results import PropositionResult
from steerscope.reports.verification.margins import CLAIM, CONTROL, PUBLIC, plot_margins


def result(number, claim, controls=(), published=()):
    evidence = Evidence(tuple(claim), tuple(controls), tuple(published))
    one = Proposition(number, "g", "title", "c", "a", Source.OURS, lambda subject: evidence, "p")
    return PropositionResult.of(Result(one, evidence, verdict_of(evidence), 0.0))


def test_errors_of_claims_controls_and_public_forms():
    first = result(
        1,
        [
            Measurement("small", 1e-15, high=1e-12),
            Measurement("exact", 0.0, 0.0, 0.0),
            Measurement("slope", 2.0, 1.9, 2.1),
        ],
        [Measurement("wrong", 0.3, high=1e-12), Measurement("undefined", math.nan, high=1e-12)],
        [Measurement("public", 0.7, high=1e-12), Measurement("differs", 0.9, low=0.1)],
    )
    below = result(2, [Measurement("far below its bound", -0.5, high=1e-12)])
    only_slopes = result(3, [Measurement("slope", 2.0, 1.9, 2.1)])
    (ax,) = plot_margins([first, below, only_slopes], "title", "foot").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["P1 title", "P2 title"]
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines[:3]]
    assert drawn == [([1e-15, 1e-17], [0, 1]), ([0.3], [0]), ([0.7], [0])]
    names = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert names == [CLAIM, CONTROL, PUBLIC, "rounding of float64"]


def test_nothing_small_is_refused():
    with pytest.raises(InputError, match="at least one"):
        plot_margins([result(3, [Measurement("slope", 2.0, 1.9, 2.1)])], "title", "foot")
