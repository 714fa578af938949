"""P21, P22, P26 to P28: verdicts, formulas made wrong, every layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steerscope.equivalence.propositions import p21_22_oracles, p26_27_28_linear_oracles
from steerscope.equivalence.propositions.base import Verdict
from tests.equivalence.propositions.trials import (
    FAMILIES,
    SEEDS,
    assert_verdict,
    by_name,
    fingerprint,
    home,
    random_blocks,
    tiny_blocks,
    verdict,
)

FILES = (p21_22_oracles, p26_27_28_linear_oracles)
ALL = by_name(proposition for file in FILES for proposition in file.PROPOSITIONS)
HOLDS, CORRECTED = Verdict.HOLDS, Verdict.CORRECTED
EXPECTED = {"P21": HOLDS, "P22": CORRECTED, "P26": HOLDS, "P27": CORRECTED, "P28": HOLDS}


def truncated_coefficients(x: torch.Tensor, y: torch.Tensor, rank: int) -> torch.Tensor:
    left, values, right = torch.linalg.svd(torch.linalg.pinv(x) @ y, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


MUTATIONS: list[tuple[str, str, Callable]] = [
    ("P21", "oracle_shift", lambda tuned, base: base - tuned),
    ("P22", "lockstep_shift", lambda tuned, current: 0.99 * (tuned - current)),
    ("P22", "one_step_shift", lambda output, on_base: output - 1.01 * on_base),
    ("P26", "principal_error", lambda rows, rank: p26_27_28_linear_oracles.spectrum_tail(rows, rank + 1)),
    ("P26", "spectrum_tail", lambda rows, rank: torch.linalg.svdvals(rows)[rank:].square().sum()),  # not centred
    ("P27", "curved_oracle", lambda h, v, u: ((h @ v) ** 3 - 1).unsqueeze(-1) * u),  # odd: has a linear part
    ("P28", "reduced_rank_map", truncated_coefficients),
]


def test_a_verdict_is_expected_of_every_proposition():
    assert set(EXPECTED) == set(ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_blocks(name: str, seed: int):
    assert_verdict(ALL[name], random_blocks(seed), EXPECTED[name])


@pytest.mark.parametrize(("name", "formula", "wrong"), MUTATIONS, ids=[f"{n}-{f}" for n, f, _ in MUTATIONS])
def test_a_wrong_formula_fails(name: str, formula: str, wrong: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(home(FILES, ALL[name].number), formula, wrong)
    assert verdict(ALL[name], random_blocks(0)) is Verdict.FAILS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXPECTED)
def test_every_layout(name: str, family: str):
    assert_verdict(ALL[name], tiny_blocks(family), EXPECTED[name])


def test_the_model_is_left_as_it_was():
    subject = tiny_blocks("llama")
    before = fingerprint(subject)
    for proposition in ALL.values():
        verdict(proposition, subject)
    assert fingerprint(subject) == before


def test_the_static_oracle_overshoots_more_with_every_layer():
    with random_blocks(0).ready() as subject:
        overshoot = ALL["P22"].check(subject).series["overshoot"].y
    assert overshoot[0] < 1e-12  # nothing below the first layer to count twice
    assert overshoot[0] < overshoot[1] < overshoot[2]
