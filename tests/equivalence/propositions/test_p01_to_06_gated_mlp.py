"""P1 to P6: verdicts on random and tiny blocks."""

import pytest
import torch

from steerscope.equivalence.propositions import p01_02_first_order, p03_04_05_second_order, p06_row_scaling
from steerscope.equivalence.propositions.mlp_expansion import SCALES, central_difference
from tests.equivalence.propositions.trials import (
    CORRECTED,
    FAMILIES,
    HOLDS,
    NOT_APPLICABLE,
    SEEDS,
    by_number,
    evidence,
    random_blocks,
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


def test_remainder_series_fall():
    series = evidence(by_number(ALL, 1), random_blocks(0)).series["remainder"]
    assert len(series.x) == len(series.y) == len(SCALES)
    assert list(series.y) == sorted(series.y, reverse=True)


def test_central_difference_is_of_fourth_order():
    x, direction = torch.tensor([0.3], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    errors = [float((central_difference(torch.sin, x, direction, h) - x.cos()).abs()) for h in (0.1, 0.05)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.05)
