"""Rank correlations, against scipy and where there is none."""

import numpy as np
import pytest
import torch
from scipy import stats

from steerscope.analysis.scoring.intervals import spearman


def test_spearman_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=20).round(1), rng.normal(size=20).round(1)
    assert len(np.unique(first)) < 20
    expected = stats.spearmanr(first, second).statistic
    assert spearman(first, second) == pytest.approx(expected, abs=1e-12)
    assert spearman(torch.tensor(first), torch.tensor(second)) == spearman(first, second)
    assert spearman(torch.tensor(first).float(), second) == spearman(first, second)  # ranks know no precision


def test_there_is_none_of_a_constant_or_of_too_few():
    assert spearman(np.arange(5.0), np.ones(5)) is None
    assert spearman(np.ones(5), np.arange(5.0)) is None
    assert spearman(np.array([1.0, 2.0]), np.array([4.0, 3.0])) is None
    assert spearman(np.array([1.0, 2.0]), np.array([4.0, 3.0]), at_least=2) == pytest.approx(-1.0)
    assert spearman(np.array([1.0]), np.array([4.0]), at_least=2) is None
