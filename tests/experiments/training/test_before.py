"""The untrained model's answers are those of the model that is trained, whatever lies beside the run's folder."""

from __future__ import annotations

import time

import pytest
import torch

from steerscope import evaluate
from steerscope.experiments.evaluation.command import EvaluateOptions
from steerscope.experiments.training.train import train
from tests.experiments.training.tiny_runs import loaded, make_place, options, task_of

ASKS = {"test_examples": 6, "likelihoods": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("before"))


def changed(place):
    """Return the model with other weights than its files have, and than its identity says."""
    model = loaded(place)
    with torch.no_grad():
        for weight in model.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    return model


def test_a_model_in_memory_is_asked_itself(place, tmp_path):
    task = task_of(place)
    train(options(place, "none", **ASKS), task, tmp_path / "none")
    mine = changed(place)
    found = train(options(place, **ASKS), task, tmp_path / "run", loaded=mine)
    alone = train(options(place, "none", **ASKS), task, tmp_path / "elsewhere" / "none", loaded=mine)
    assert found.before.loss == alone.loss


@pytest.mark.parametrize("whence", ["train", "evaluate"])
def test_answers_of_a_model_in_memory_are_not_those_of_its_files(place, tmp_path, whence):
    task, mine = task_of(place), changed(place)
    if whence == "train":
        train(options(place, "none", **ASKS), task, tmp_path / "none", loaded=mine)
    else:
        asked = EvaluateOptions(max_examples=6, max_new_tokens=24, likelihoods=True)
        evaluate(mine, task, asked, out=tmp_path / "none")
    found = train(options(place, **ASKS), task, tmp_path / "run")
    alone = train(options(place, "none", **ASKS), task, tmp_path / "elsewhere" / "none")
    assert found.before.loss == alone.loss


def test_what_cannot_be_read_beside_a_run_is_passed_over(place, tmp_path):
    # The system refuses to look behind a name this long, as it does behind a folder of somebody else.
    (tmp_path / "aside").symlink_to("n" * 300)
    with pytest.raises(OSError, match="name too long"):
        (tmp_path / "aside" / "results.json").is_file()
    assert train(options(place), task_of(place), tmp_path / "run").before is not None


def test_seconds_of_a_run_leave_out_what_only_the_first_in_a_folder_does(place, tmp_path, monkeypatch):
    clock, late = time.perf_counter, []
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(late))
    slow = {"generate_before": 10**6, "generate": 10**5}
    found = train(
        options(place), task_of(place), tmp_path / "run",
        progress=lambda stage, done, total: late.append(slow.pop(stage, 0)),
    )  # fmt: skip
    assert not slow
    assert 10**5 <= found.seconds < 10**6
