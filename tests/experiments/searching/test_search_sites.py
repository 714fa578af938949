"""A search: what it trains, what it chooses, and that it can be stopped and goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from steerscope import SteeringModel, get_task, wrap_model
from steerscope.errors import InputError
from steerscope.experiments.engine import staged
from steerscope.experiments.engine.candidate import Candidate
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.searching import SearchOptions, SearchResult, search_sites
from steerscope.experiments.searching.choosing import chosen_sites
from steerscope.experiments.searching.halving import halve, loss_of
from steerscope.reports.searching.page import answer_sentences
from tests.byte_models import byte_model, byte_tokenizer

OPTIONS = SearchOptions(
    candidates=4, rank=2, steps=10, batch_size=4, num_ranking=24, num_selection=16, num_test=16, references=False
)


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(byte_model(), byte_tokenizer())


def searched(loaded, folder, options=OPTIONS) -> SearchResult:
    return search_sites(loaded, splits_of_task(get_task("listops")), options, folder)


@pytest.fixture(scope="module")
def whole(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "search"
    return searched(loaded, folder, dataclasses.replace(OPTIONS, references=True)), folder


def test_the_best_finished_run_is_chosen_and_its_adapter_is_the_one_that_was_tested(loaded, whole):
    result, folder = whole
    assert SearchResult.load(folder / "search.json") == result
    finished = [one for one in result.contenders if one.selection_loss is not None]
    assert finished
    assert all(one.steps == 10 for one in finished)
    assert {one.steps for one in result.contenders} == {2, 4, 10}
    kept = [json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")]
    edits = [one for one in kept if "selection_loss" in one and one["config"]["config"] is not None]
    whole_runs = [one for one in edits if one["config"]["method"] != "0.resid_post+1.resid_post"]
    lowest = min(whole_runs, key=lambda one: one["selection_loss"])["config"]
    assert (result.best.name, result.best.learning_rate) == (lowest["method"], lowest["learning_rate"])
    assert "| Test accuracy | " in (folder / "adapter" / "README.md").read_text()
    assert result.best.served_as == ("adapter" if "resid" in result.best.name else "lora_with_bias")
    assert ("No LoRA is" if "resid" in result.best.name else "a LoRA with a bias") in " ".join(answer_sentences(result))
    # Against a pass of our own with the saved adapter.
    task = splits_of_task(get_task("listops"))
    with torch.no_grad():
        model = SteeringModel.from_pretrained(loaded.model, folder / "adapter")
        losses = []
        for one in task.test(16):
            ids = torch.tensor([loaded.tokenizer(one.prompt + one.completion)["input_ids"]])
            losses.append(float(-model(ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]))
        model.unload()
    assert sum(losses) / 16 == pytest.approx(result.best.loss, abs=1e-5)


def test_plain_defaults_are_trained_beside_it(whole):
    names = [one.name for one in whole[0].references]
    assert names == ["0.resid_post+1.resid_post", "lora"]
    assert all(one.n_params > 0 and one.loss is not None for one in whole[0].references)


def test_an_interrupted_search_goes_on_to_the_same_result(loaded, tmp_path, monkeypatch):
    alone = searched(loaded, tmp_path / "alone")
    calls, real = itertools.count(), staged.train_pack

    def interrupted(*args, **kwargs):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(staged, "train_pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searched(loaded, tmp_path / "search")
    monkeypatch.setattr(staged, "train_pack", real)
    again = searched(loaded, tmp_path / "search")
    assert again.contenders == alone.contenders
    assert again.best.name == alone.best.name
    assert again.best.loss == alone.best.loss


def test_another_search_does_not_go_on_in_the_folder(loaded, whole):
    with pytest.raises(InputError, match="begun with another steps"):
        searched(loaded, whole[1], dataclasses.replace(OPTIONS, steps=12))


def test_halving_keeps_the_better_third_and_counts_a_stop_as_the_worst():
    """Of runs whose losses are made up: what is under test is who goes on, and for how long."""

    class Made:
        class schedule:
            steps = 20

        def advance(self, runs, until):
            return [tuple([rate] * (until if rate < 9 else 1)) for _, rate, _ in runs]

    names = [Candidate(f"{i}.mlp_out", None, 0, "") for i in range(5)]
    runs = [(one, rate, 0) for one in names for rate in (1.0 + int(one.name[0]), 1.5, 9.0)]
    found = halve(Made(), runs)
    assert [one.steps for one in found].count(20) == 2
    assert [one.steps for one in found].count(9) == 3
    assert found[0].run[1] == 1.0
    assert loss_of((1.0,), 4) == float("inf")
    assert loss_of((9.0, 9.0, 1.0, 2.0), 4) == 1.5


def test_half_of_the_candidates_do_not_depend_on_the_score(loaded, whole):
    from steerscope.analysis.results import Ranking

    ranking = Ranking.load(whole[1] / "ranking.json")
    upside_down = dataclasses.replace(ranking, sites=ranking.sites[::-1])
    both = set(chosen_sites(ranking, 8, "score", loaded.site_map)) & set(
        chosen_sites(upside_down, 8, "score", loaded.site_map)
    )
    assert len(both) >= 4
    assert len(set(chosen_sites(ranking, 8, "spread", loaded.site_map))) == 8
    assert all(name.startswith("0.") for name in chosen_sites(ranking, 4, "depth", loaded.site_map))


@pytest.mark.parametrize(
    ("changes", "says"), [({"start": "luck"}, "start"), ({"budget": -1.0}, "budget"), ({"candidates": 1}, "candidates")]
)
def test_what_cannot_work_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(OPTIONS, **changes)


def test_a_budget_shortens_the_search_and_says_so(loaded, tmp_path):
    found = searched(loaded, tmp_path / "search", dataclasses.replace(OPTIONS, candidates=14, budget=0.2))
    assert found.best.loss is not None
    with pytest.raises(InputError, match="budget"):
        searched(loaded, tmp_path / "none", dataclasses.replace(OPTIONS, budget=1e-6))
