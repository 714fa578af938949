"""What is learned from: parts, and one order of batches."""

from __future__ import annotations

import pytest

from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import POOL, draw_parts, training_rows
from tests.experiments.training.tiny_runs import make_place, options, task_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("data"))


def test_the_order_covers_all_examples_evenly_in_batches_of_one_length():
    many = [SupervisedSequence(tuple(range(n)), 1) for n in range(2, 66)]
    rows = training_rows(many, steps=32, batch_size=4, seed=0)
    assert len(rows) == 128
    assert sorted(rows[:64], key=lambda row: len(row.ids)) == many  # one epoch
    assert rows == training_rows(many, steps=32, batch_size=4, seed=0)
    assert rows != training_rows(many, steps=32, batch_size=4, seed=1)
    spread = [max(map(len, b)) - min(map(len, b)) for b in ([r.ids for r in rows[i : i + 4]] for i in range(0, 128, 4))]
    assert sum(spread) / len(spread) < 12  # by chance it is 39
    assert POOL * 4 < 64


def test_parts_are_disjoint_and_only_train_depends_on_the_seed(place):
    task = task_of(place)
    first, second = (draw_parts(task, options(place, seed=seed, learning_rate="auto", steps=5)) for seed in (0, 1))
    assert first.train != second.train
    assert first.train_set != second.train_set
    assert (first.validation, first.test) == (second.validation, second.test)
    prompts = [{one.prompt for one in part} for part in (first.train, first.validation, first.test)]
    assert [len(one) for one in prompts] == [20, 6, 6]
    assert not prompts[0] & (prompts[1] | prompts[2])
    assert not prompts[1] & prompts[2]
    assert draw_parts(task, options(place)).validation == ()
