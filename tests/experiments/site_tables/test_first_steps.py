"""The loss after a few real steps is read from the table's own runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from steerscope.experiments.site_tables.common import common_outcomes
from steerscope.experiments.site_tables.first_steps import first_steps
from steerscope.experiments.site_tables.judging import judge
from tests.experiments.site_tables.tiny import made_up


def _with_losses(table):
    """Give every run losses that tell its site and step apart."""
    sites = sorted({run.site for run in table.runs})
    return replace(
        table,
        runs=tuple(
            replace(run, train_losses=tuple(sites.index(run.site) + 100.0 * step for step in range(run.steps)))
            for run in table.runs
        ),
    ), sites


def test_the_loss_after_k_steps_is_that_of_the_batch_that_comes_next():
    table, sites = _with_losses(made_up())
    common = common_outcomes(table)
    found = first_steps(table, common)
    assert sorted(found) == [f"loss_after_{k}" for k in (1, 4, 8) if k < table.steps]
    expected = np.array([sites.index(site) for site in common.sites])
    for name, scores in found.items():
        np.testing.assert_array_equal(-scores, expected + 100.0 * int(name.rsplit("_", 1)[1]))


def test_a_run_that_stopped_early_ranks_last():
    table, _ = _with_losses(made_up())
    stopped = common_outcomes(table).sites[3]
    table = replace(
        table, runs=tuple(replace(run, train_losses=(2.0,)) if run.site == stopped else run for run in table.runs)
    )
    found = first_steps(table, common_outcomes(table))
    assert all(np.argmin(scores) == 3 for scores in found.values())


def test_it_is_judged_beside_scores_and_is_none_of_the_plain_baselines():
    table, _ = _with_losses(made_up())
    found = judge(table)
    assert "loss_after_1" in found.scores
    assert "loss_after_1" not in found.baselines
    assert "loss_after" not in found.headline()
