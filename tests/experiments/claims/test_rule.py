"""The rule on numbers whose verdict is known, and what stops it from giving one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from steerscope.errors import InputError
from studies.claims.rule import Difference, difference, gain, rights, verdict, why_unfair
from tests.experiments.claims.cases import N, first, of, run
from tests.experiments.training.cases import GENERATIONS


def test_the_interval_is_that_of_the_rule(tmp_path):
    run(tmp_path, "post-block", [first(120), first(130), first(125)])
    run(tmp_path, "post-mlp", [first(110), first(112), first(114)], "mlp_out")
    found = difference(of(tmp_path, "post-block"), of(tmp_path, "post-mlp"))
    assert found.mean == pytest.approx((10 + 18 + 11) / 3 / N)
    seeds = [10 / N, 18 / N, 11 / N]
    mean = sum(seeds) / 3
    of_seeds = 4.302653 * math.sqrt(sum((d - mean) ** 2 for d in seeds) / 2) / math.sqrt(3)
    # Questions 110 to 129: how many of three seeds only the first method has right.
    counts = [sum(b <= q < a for a, b in ((120, 110), (130, 112), (125, 114))) / 3 for q in range(N)]
    of_questions = 1.96 * math.sqrt(sum((c - mean) ** 2 for c in counts) / (N - 1)) / math.sqrt(N)
    assert found.high - found.mean == pytest.approx(math.hypot(of_seeds, of_questions), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert (found.seeds, found.n) == (3, N)
    with_two = difference(of(tmp_path, "post-block"), replace(of(tmp_path, "post-mlp"), seeds=(0, 1, 7)))
    assert (with_two.seeds, with_two.low) == (2, -math.inf)
    assert difference(of(tmp_path, "post-block"), replace(of(tmp_path, "post-mlp"), seeds=(7, 8, 9))) is None


def test_a_gain_is_over_the_one_run_of_the_untrained_model(tmp_path):
    run(tmp_path, "post-block", [first(120), first(130), first(125)])
    run(tmp_path, "none", [first(100)], None)
    found = gain(of(tmp_path, "post-block"), of(tmp_path, "none"))
    assert (found.mean, found.seeds) == (pytest.approx(25 / N), 3)


@pytest.mark.parametrize(
    ("low", "high", "strict", "expected"),
    [
        (0.01, 0.05, False, "reproduced"),
        (0.01, 0.05, True, "reproduced"),
        (-0.009, 0.05, False, "reproduced"),
        (-0.009, 0.05, True, "undecided"),
        (-0.02, 0.05, False, "undecided"),
        # Surely worse, by less than the margin that the claim allows.
        (-0.009, -0.001, False, "reproduced"),
        (-0.009, -0.001, True, "not reproduced"),
        # Surely worse, not surely by more than the margin.
        (-0.05, -0.005, False, "undecided"),
        (-0.05, -0.011, False, "not reproduced"),
        (-0.05, -0.01, True, "not reproduced"),
        (-0.008, 0.006, True, "undecided (equal within a point)"),
    ],
)
def test_verdicts(low, high, strict, expected):
    found = Difference((low + high) / 2, low, high, 3, N)
    assert str(verdict(found, strict=strict)) == expected
    assert str(verdict(found, strict=strict, blocked="so")) == "undecided (so)"
    assert str(verdict(replace(found, seeds=2), strict=strict)) == "undecided (fewer than three seeds in common)"
    assert str(verdict(None, strict=strict)) == "undecided (fewer than three seeds in common)"


@pytest.mark.parametrize("shift", [-0.04, -0.013, -0.011, 0.0, 0.011, 0.04])
def test_the_rule_treats_both_words_alike(shift):
    """Mirrored at its bound, a difference that reproduces a claim does not reproduce it, and the other way round."""
    other = {"reproduced": "not reproduced", "not reproduced": "reproduced", "undecided": "undecided"}
    for strict, bound in ((False, -0.01), (True, 0.0)):
        one, mirrored = (Difference(mean, mean - 0.012, mean + 0.012, 3, N) for mean in (bound + shift, bound - shift))
        assert verdict(mirrored, strict=strict).kind == other[verdict(one, strict=strict).kind]


def test_only_equal_searches_are_fair(tmp_path):
    run(tmp_path, "post-block", [first(9)])
    run(tmp_path, "lora", [first(9)], None, tries=3)
    run(tmp_path, "sft", [first(9)], None, learning_rate=1e-3)
    run(tmp_path, "loreft", [first(9)], interior=False)
    block, lora, sft, edge = (of(tmp_path, name) for name in ("post-block", "lora", "sft", "loreft"))
    assert why_unfair(block, block) == ""
    assert why_unfair(block, edge) == "the learning rate of the second is at the edge of the search"
    assert why_unfair(edge, block) == "the learning rate of the first is at the edge of the search"
    assert why_unfair(block, lora) == "learning rates not searched alike"
    assert why_unfair(sft, sft) == "learning rates not searched alike"


def test_one_search_for_all_seeds_is_fair_to_one_search_for_all_seeds(tmp_path):
    run(tmp_path, "post-block", [first(9)] * 2)
    run(tmp_path, "lora", [first(9)] * 2, None, searched_once=True)
    run(tmp_path, "sft", [first(9)] * 2, None, searched_once=True)
    each, once, other = (of(tmp_path, name) for name in ("post-block", "lora", "sft"))
    assert why_unfair(once, other) == ""
    assert why_unfair(each, once) == "learning rates not searched alike"


def test_questions_must_be_the_same(tmp_path):
    run(tmp_path, "post-block", [first(9)] * 3)
    run(tmp_path, "post-mlp", [first(9)] * 3, "mlp_out")
    path = tmp_path / "post-mlp-8-1" / "generations.jsonl"
    path.write_text(path.read_text().replace('"q7"', '"q6"'))
    with pytest.raises(InputError, match="answered other questions"):
        difference(of(tmp_path, "post-block"), of(tmp_path, "post-mlp"))
    assert {"q6#0", "q6#1"} < set(rights(str(tmp_path / "post-mlp-8-1")))
    path.write_text(path.read_text().replace(GENERATIONS[0].text, "a\u2028b\x85c"))  # line ends to some, not to JSON
    assert len(rights.__wrapped__(str(tmp_path / "post-mlp-8-1"))) == N
    (tmp_path / "post-block-8-0" / "generations.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"no readable generations\.jsonl"):
        rights.__wrapped__(str(tmp_path / "post-block-8-0"))
