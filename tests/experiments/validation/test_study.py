"""The study's page is made from result files, and what the package keeps is what they say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steerscope import InputError
from steerscope.analysis.scoring.scores import DEFAULT_SCORE
from steerscope.experiments.agreement.depth_and_kind import CONSTANTS
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.result import (
    TrainedSite,
    Untrained,
    Validation,
    ValidationCost,
    ValidationSettings,
)
from steerscope.experiments.validation.validate import compared
from steerscope.records import copied
from studies.validation import BOUNDED, _mean_margin, render, write_study
from tests.identities import identity

DOCS = Path(__file__).parents[3] / "docs"


def made_up(task, rng, bounded=1.0):
    names = [f"{layer}.{kind}" for layer in range(4) for kind in ("attn_out", "mlp_out", "resid_post")]
    losses = 2 + np.arange(12)[:, None] / 20 + rng.normal(size=(12, 2)) / 50
    sites = tuple(
        TrainedSite(
            method=name,
            learning_rate=0.01,
            interior=True,
            tried={"0.01": float(losses[i, 0]), "0.1": None},
            losses=tuple(map(float, losses[i])),
            accuracies=(0.5, 0.5),
            seconds=1.0,
            n_params=32,
            scores={
                "learnable_share": float(-i + 8 * rng.normal()),
                "depth": -float(name[0]),
                "gradient_norm": float(rng.normal()),
                BOUNDED: -float(losses[i].mean()) * bounded,
            },
        )
        for i, name in enumerate(names)
    )
    result = Validation(
        model=identity(),
        task=task,
        options=copied(ValidationSettings, ValidateOptions(seeds=2, steps=3, batch_size=4, rank=2)),
        versions={},
        before=Untrained(loss=3.0, accuracy=0.1, majority=0.2, n_test=32),
        score=DEFAULT_SCORE,
        sites=sites,
        references=(replace(sites[0], method="lora", scores={}, losses=(1.5,)),),
        agreements={},
        baselines=(),
        attainable=None,
        cost=ValidationCost(ranking=1.0, training=50.0, sweep=200.0, ratio=0.005),
        command="steerscope validate small",
    )
    return compared(result)


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(0)
    for task in ("first", "second"):
        made_up(task, rng).save(tmp_path / f"validation-{task}.json")
    tried = {"study": "small on first", "role": "choose", "command": "python x", "candidates": {}}
    tried["candidates"] = {"share": {"spearman": 0.4, "partial": 0.3}, "own_drop": {"spearman": 0.6, "partial": 0.5}}
    (tmp_path / "candidates-first.json").write_text(json.dumps(tried))
    places = {"constants": tmp_path / "constants.json"}
    write_study(tmp_path, tmp_path / "page.md", **places)
    return tmp_path


def test_the_page_holds_every_study_and_candidate(written):
    page = (written / "page.md").read_text()
    for text in (
        "## small on first",
        "## small on second",
        "| `own_drop` | 0.60 |",
        "steerscope validate small",
        "lora",
    ):
        assert text in page
    assert page.index("`own_drop`") < page.index("`share`")  # best first
    assert "depth and kind" in page  # the baseline, its constants from the other study


def test_constants_are_those_of_the_files(written):
    constants = json.loads((written / "constants.json").read_text())
    assert set(constants) == {"small on first", "small on second"}
    assert constants["small on first"]["depth"] > 0  # deeper trained worse, by construction


@pytest.mark.parametrize(("bounded", "replaces"), [(1.0, True), (-1.0, False)])
def test_the_second_plans_rule_looks_at_other_tasks_alone(bounded, replaces):
    rng = np.random.default_rng(0)
    chosen, report = made_up("listops", rng, bounded=-bounded), made_up("boolq_closed", rng, bounded)
    assert "gives nothing yet" in render([chosen], [])
    assert "The project's bars" not in render([chosen], [])
    page = render([chosen, report], [])
    assert f"| `{DEFAULT_SCORE}` | small on boolq_closed |" in page
    assert "| average |" not in page
    again = render([chosen, report, replace(report, task="arc_easy_short")], [])
    assert again.count("| average |") == 2
    assert ("it replaces the learnable share" in page) == replaces
    assert "| small on listops | chosen on |" in page
    assert "| small on boolq_closed | report |" in page


def test_margins_are_averaged_as_independent():
    found = made_up("any", np.random.default_rng(0)).agreements[DEFAULT_SCORE]
    one = replace(found, margin=0.2, margin_low=-0.1, margin_high=0.4)
    mean, low, high = _mean_margin([one, one])
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - 0.3 / 2**0.5, 0.2 + 0.2 / 2**0.5))
    assert _mean_margin([one]) == pytest.approx((0.2, -0.1, 0.4))


def test_the_first_plans_rule_ignores_what_was_made_after_it(written):
    tried = json.loads((written / "candidates-first.json").read_text())
    tried["candidates"][BOUNDED] = {"spearman": 0.9, "partial": 0.9}
    (written / "candidates-first.json").write_text(json.dumps(tried))
    write_study(written, written / "p.md", constants=written / "c.json")
    assert "The rule of the plan chooses `own_drop`" in (written / "p.md").read_text()


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="holds no validation"):
        write_study(tmp_path, tmp_path / "page.md")


@pytest.mark.skipif(not list((DOCS / "results").glob("validation-*.json")), reason="no study is kept yet")
def test_the_kept_page_is_the_one_that_the_kept_files_give(tmp_path):
    places = {"constants": tmp_path / "constants.json"}
    write_study(DOCS / "results", tmp_path / "page.md", **places)
    assert (tmp_path / "page.md").read_text() == (DOCS / "validation.md").read_text()
    assert json.loads(places["constants"].read_text()) == json.loads(CONSTANTS.read_text())


def test_a_validation_of_version_1_is_compared_again(tmp_path):
    result = made_up("first", np.random.default_rng(0))
    old = json.loads(result.to_json())
    del old["attainable"]
    old |= {"schema_version": 1, "ceiling": {"spearman": 0.9}, "agreements": {"depth": {"spearman": 0.1}}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert Validation.load(tmp_path / "old.json") == result
