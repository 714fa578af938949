"""What would decide an undecided comparison: the numbers named do, and no smaller ones."""

from __future__ import annotations

import pytest

from studies.claims.power import chance_for_equals, power_of
from studies.claims.rule import Difference, half_width, verdict


def found(mean: float, of_seeds: float, seeds: int, of_questions: float, n: int) -> Difference:
    half = half_width(of_seeds, seeds, of_questions, n)
    return Difference(mean, mean - half, mean + half, seeds, n, of_seeds, of_questions)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("mean", [0.012, -0.03, -0.05])
def test_seeds_and_questions_that_are_named_decide(mean, strict):
    facts = {"of_seeds": 0.02, "seeds": 3, "of_questions": 0.3, "n": 1000}
    now = found(mean, **facts)
    assert verdict(now, strict=strict).kind == "undecided"
    power = power_of(now, strict=strict)
    bound = 0 if strict else -0.01
    assert power.excess == pytest.approx(min(now.high - bound, bound - now.low, key=abs))
    for changed, number in (("seeds", power.seeds), ("n", power.questions), (None, power.times)):
        if number is None:
            continue
        more = facts | ({changed: number} if changed else {"seeds": 3 * number, "n": 1000 * number})
        fewer = number - (2 if changed == "n" else 1)  # questions are rounded up
        less = facts | ({changed: fewer} if changed else {"seeds": 3 * (number - 1), "n": 1000 * (number - 1)})
        assert verdict(found(mean, **more), strict=strict).kind != "undecided"
        assert verdict(found(mean, **less), strict=strict).kind == "undecided"
    assert power.seeds is not None or power.times is not None


def test_words():
    now = found(0.0, of_seeds=0.01, seeds=3, of_questions=0.1, n=1000)
    assert str(power_of(now, strict=False)) == "1.6 points too wide; 9 seeds would decide"
    equal = found(-0.01, of_seeds=0.01, seeds=3, of_questions=0.1, n=1000)
    assert str(power_of(equal, strict=False)).endswith("too wide; the mean is too near the bound")
    noisy = found(0.0, of_seeds=0.01, seeds=3, of_questions=0.6, n=1000)
    assert str(power_of(noisy, strict=False)).endswith("times as many of both would decide")


def test_the_chance_of_finding_equals_equal():
    assert chance_for_equals(0.01) == pytest.approx(0.5)
    # The lower end is above minus one point if the estimate is above (2 - 1) points: 0.98 standard errors of 1.02.
    assert chance_for_equals(0.02) == pytest.approx(0.1635, abs=1e-3)
    assert chance_for_equals(0.0) == 1.0
