"""How trainings ended: what their losses say, and what longer runs do."""

from __future__ import annotations

import pytest

from steerscope.experiments.comparison import compare
from studies.claims.convergence import end_of, longer_runs
from studies.claims.groups import groups_of
from studies.claims.tables import ends_table
from tests.experiments.claims.cases import first, group, of, run, untrained

FALLING = [2.0 - 0.05 * i for i in range(20)]
FLAT = [2.0, 1.8, 1.6, 1.4, 1.2] + [1.0] * 15
RISING = [1.0 + 0.05 * i for i in range(20)]


@pytest.mark.parametrize(
    ("losses", "share", "word"),
    [(FALLING, 2 * 0.05 / 0.9, "still falling"), (FLAT, 0.0, "flat"), (RISING, None, "did not fall")],
)
def test_the_last_tenth_is_compared_with_the_one_before(tmp_path, losses, share, word):
    run(tmp_path, "post-block", [first(9)] * 3, losses=losses)
    end = end_of(of(tmp_path, "post-block"))
    tenths = [sum(losses[i : i + 2]) / 2 + 0.001 for i in (0, -4, -2)]  # seeds add 0, 0.001 and 0.002
    tenths[2] = sum(losses[-2:]) / 2 + 0.001
    assert (end.first, end.before, end.last) == pytest.approx(tenths)
    assert end.word == word
    if share is not None:
        assert end.share == pytest.approx(share)


def test_seeds_that_differ_too_much_tell_nothing(tmp_path):
    run(tmp_path, "post-block", [first(9)], losses=FALLING)
    assert end_of(of(tmp_path, "post-block")).word == "not told"


def test_too_few_losses_are_none(tmp_path):
    run(tmp_path, "post-block", [first(9)] * 3, losses=FALLING[:9])
    run(tmp_path, "sft", [first(9)] * 3, None)
    assert end_of(of(tmp_path, "post-block")) is None
    assert end_of(of(tmp_path, "sft")) is None
    assert ends_table(group(tmp_path), []).startswith("Losses by step were not kept.")


def test_longer_runs_stand_beside_shorter_ones(tmp_path):
    untrained(tmp_path, 20)
    run(tmp_path, "post-block", [first(100)] * 3)
    run(tmp_path, "post-mlp", [first(100)] * 3, "mlp_out")
    run(tmp_path, "post-block", [first(110)], steps=240, lr_steps=9)
    run(tmp_path, "post-block", [first(140)], steps=240, bias=False)
    groups = sorted(groups_of(compare([tmp_path])), key=lambda one: one.title)
    assert [len(one.trained) for one in groups] == [2, 2]
    found = [longer_runs(one, groups) for one in groups]
    (one,) = found[0]
    assert (one.words, one.steps, one.accuracies) == ("post-block r8", (120, 240), (0.5, 0.55))
    assert one.gain.mean == pytest.approx(0.05)
    assert found[1] == []
    assert "| post-block r8 | 120 : 240 | 50.0% : 55.0% | +5.0 (1 seed) |" in ends_table(groups[0], found[0])
    assert "No configuration was also trained for longer." in ends_table(groups[1], found[1])
