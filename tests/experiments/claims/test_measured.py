"""What is measured beside runs: what spaces leave of a fine-tuning, and the untrained model recalibrated."""

from __future__ import annotations

import json

import pytest

from steerscope.errors import InputError
from steerscope.experiments.training.train import train
from studies.claims.leftover import measure_leftover
from studies.claims.page import write_claims
from studies.claims.recalibrated import measure_recalibrated
from tests.experiments.claims.cases import first, run
from tests.experiments.training.tiny_runs import make_place, options, task_of


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_what_a_space_leaves_is_measured_on_a_run(tmp_path, method):
    place = make_place(tmp_path)
    task = task_of(place)
    train(options(place, method, steps=10, learning_rate=0.02), task, tmp_path / "runs" / "one")
    found = measure_leftover(tmp_path / "runs" / "one", task, ranks=(1, 16), examples=12, batch_size=4)
    left = {(row["kind"], row["rank"]): row["kl"] / found["kl_base"] for row in found["spaces"]}
    assert found["kl_base"] > 1e-3
    assert len(left) == 8
    # Maps of full rank on the stream come nearer than those of rank 1, which come nearer than nothing.
    assert left["resid_post", 16] < left["resid_post", 1] < 1
    write_claims([tmp_path / "runs"], tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    assert f"| listops | model | {method} | resid_post | 1 | 1 | {left['resid_post', 1]:.1%} |" in page
    assert json.loads((tmp_path / "runs" / "one" / "leftover.json").read_text()) == found


def test_other_runs_leave_nothing_to_measure(tmp_path):
    run(tmp_path, "post-block", [first(9)])
    with pytest.raises(InputError, match="expected sft, bitfit or lora"):
        measure_leftover(tmp_path / "post-block-8-0", None)


def test_recalibration_is_measured_on_the_untrained_model(tmp_path):
    place = make_place(tmp_path)
    task, run_ = task_of(place), tmp_path / "runs" / "none"
    train(options(place, "none", learning_rate=None), task, run_)
    found = measure_recalibrated(run_, task)
    assert found["n"] == 6
    # With as many free numbers as answers, the most frequent answer at least is found.
    assert 0 <= found["accuracy"] <= 1
    assert json.loads((run_ / "recalibrated.json").read_text()) == found


def test_recalibration_knows_a_run_on_all_of_a_test_part_smaller_than_asked(tmp_path):
    place = make_place(tmp_path)
    task, run_ = task_of(place, "boolq"), tmp_path / "runs" / "none"
    n = len(task.split("test", None, 0))
    train(options(place, "none", task="boolq", learning_rate=None, test_examples=n + 1), task, run_)
    assert measure_recalibrated(run_, task)["n"] == n


def test_recalibration_is_of_the_run_and_its_questions(tmp_path):
    place = make_place(tmp_path)
    train(options(place, "none", learning_rate=None), task_of(place), tmp_path / "runs" / "none")
    with pytest.raises(InputError, match="was asked other questions"):
        measure_recalibrated(tmp_path / "runs" / "none", task_of(place, "boolq"))
    run(tmp_path, "post-block", [first(9)])
    with pytest.raises(InputError, match="expected none, the model as it is"):
        measure_recalibrated(tmp_path / "post-block-8-0", task_of(place))
