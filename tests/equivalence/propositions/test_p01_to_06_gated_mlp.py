"""P1 to P6: verdicts on random and tiny blocks, and that a wrong formula is noticed."""

import pytest
import torch

from steerscope.equivalence.propositions import p01_02_first_order, p03_04_05_second_order, p06_row_scaling
from steerscope.equivalence.propositions.mlp_expansion import SCALES, central_difference
from tests.equivalence.propositions.trials import (
    CORRECTED,
    FAILS,
    FAMILIES,
    HOLDS,
    NOT_APPLICABLE,
    SEEDS,
    by_number,
    evidence,
    home,
    instead,
    mutated_verdict,
    random_blocks,
    scaled,
    tiny_blocks,
    verdicts,
)

FILES = (p01_02_first_order, p03_04_05_second_order, p06_row_scaling)
ALL = [proposition for file in FILES for proposition in file.PROPOSITIONS]
GATED = {1: HOLDS, 2: HOLDS, 3: HOLDS, 4: HOLDS, 5: HOLDS, 6: CORRECTED}
# Without a gate: nothing is bilinear, and the misprinted formula is not about plain MLPs.
PLAIN = {**GATED, 4: NOT_APPLICABLE, 6: HOLDS}
EXPECTED = {"llama": GATED, "gemma2": GATED, "olmo2": GATED, "gpt2": PLAIN, "gpt_neox": PLAIN, "phi": PLAIN}
# ReLU: within one activation pattern a plain MLP is linear in its input, and bilinear in its weights.
RELU = {**PLAIN, 2: NOT_APPLICABLE, 3: NOT_APPLICABLE, 5: NOT_APPLICABLE}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_blocks(seed):
    assert verdicts(ALL, random_blocks(seed)) == GATED


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts(family):
    assert verdicts(ALL, tiny_blocks(family)) == EXPECTED[family]


def test_relu():
    assert verdicts(ALL, tiny_blocks("opt")) == RELU
    assert any("kink" in note for note in evidence(by_number(ALL, 1), tiny_blocks("opt")).notes)


MUTATIONS = [
    (1, "weight_shift", scaled(1.01)),
    (2, "input_shift", scaled(1.01)),
    (2, "input_jacobian", lambda original: lambda *args: original(*args).T),
    (3, "input_second_order", scaled(1.1)),
    (4, "bilinear_remainder", scaled(0.5)),
    (5, "weight_second_order", scaled(1.1)),
    (6, "scaled_rows", instead(lambda scale, weight: weight.roll(1, 0) * scale[:, None])),
]


@pytest.mark.parametrize(("number", "name", "mutate"), MUTATIONS, ids=[f"P{m[0]}-{m[1]}" for m in MUTATIONS])
def test_a_wrong_formula_fails(monkeypatch, number, name, mutate):
    assert mutated_verdict(monkeypatch, home(FILES, number), number, name, mutate) is FAILS


def test_without_the_misprint_p6_needs_no_correction(monkeypatch):
    right = instead(p06_row_scaling.scaled_rows)
    assert mutated_verdict(monkeypatch, p06_row_scaling, 6, "scaled_as_published", right) is HOLDS


def test_remainder_series_fall():
    series = evidence(by_number(ALL, 1), random_blocks(0)).series["remainder"]
    assert len(series.x) == len(series.y) == len(SCALES)
    assert list(series.y) == sorted(series.y, reverse=True)


def test_central_difference_is_of_fourth_order():
    x, direction = torch.tensor([0.3], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    errors = [float((central_difference(torch.sin, x, direction, h) - x.cos()).abs()) for h in (0.1, 0.05)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.05)
