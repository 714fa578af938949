"""Pieces of work side by side: in order, few ahead, each thread with one of its own, and nothing left behind."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from steerscope import RankOptions, rank_sites, wrap_model
from steerscope.analysis.capture.features import SketchPlan
from steerscope.process import keep_few_compiled_products, side_by_side
from tests.analysis.test_slices import examples
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_results_come_in_the_order_of_the_items(two_threads):
    def slow_first(item: int) -> tuple[int, int, str]:
        time.sleep(0.05 if item == 0 else 0)
        return item, torch.get_num_threads(), threading.current_thread().name

    found = list(side_by_side(slow_first, range(7)))
    assert [(item, threads) for item, threads, _ in found] == [(item, 1) for item in range(7)]
    assert len({name for *_, name in found}) == 2
    assert torch.get_num_threads() == 2


def test_no_more_than_a_few_results_are_made_ahead(two_threads):
    begun: list[int] = []
    found = side_by_side(lambda item: begun.append(item) or item, range(50))
    assert next(found) == 0
    assert len(begun) <= 4
    found.close()
    assert torch.get_num_threads() == 2
    assert len(begun) <= 4


def test_a_failure_is_the_callers_and_later_work_is_not_begun(two_threads):
    begun: list[int] = []

    def fail(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        return item

    with pytest.raises(ValueError, match="one"):
        list(side_by_side(fail, range(50)))
    assert len(begun) <= 5
    assert torch.get_num_threads() == 2


def test_with_one_thread_nothing_is_begun_beside():
    assert set(side_by_side(lambda item: threading.current_thread(), range(3))) == {threading.main_thread()}


@pytest.mark.parametrize("score", ["learnable_share", "predicted_loss"])
def test_a_ranking_on_two_threads_is_that_of_one(score, two_threads):
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    options = RankOptions(exact=False, sketch=SketchPlan(False, 2, 4, 8), score=score, batch_size=4)
    found = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        found.append(rank_sites(loaded, examples("one token"), options))
    two, one = ({(s.name, s.family): s.scores for s in ranking.sites} for ranking in found)
    for key, scores in one.items():
        assert two[key] == {name: pytest.approx(value, rel=1e-4, abs=1e-4) for name, value in scores.items()}
    assert [(step.layer, step.kind) for step in found[0].greedy] == [
        (step.layer, step.kind) for step in found[1].greedy
    ]


@pytest.mark.parametrize("own", [None, "7"])
def test_few_products_are_kept_but_as_many_as_the_user_says(own, monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    keep_few_compiled_products()
    assert os.environ[name] == (own or "32")
