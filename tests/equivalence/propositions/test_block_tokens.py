"""What statements about many tokens share."""

from __future__ import annotations

import pytest

from steerscope.equivalence.propositions.block_tokens import z_score


def test_rounding_is_no_deviation_where_nothing_is_left_in_any_draw():
    assert abs(z_score((3e-13, 2e-26), -1e-13)) < 0.01
    assert z_score((0.5, 0.01), 0.47) == pytest.approx(3.0)
    assert z_score((1e-3, 0.0), 0.0) > 1e5  # a share that is not 0 where every draw agrees is a deviation
