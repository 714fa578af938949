"""A whole validation on a tiny model: what is chosen, resumed and reported."""

import json
import math
from itertools import combinations

import numpy as np
import pytest

from steerscope import Example, InputError, Ranking
from steerscope.experiments.agreement.depth_and_kind import depth_and_kind, fit
from steerscope.experiments.engine import sweep as sweep_module
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.engine.sweep import Sweep
from steerscope.experiments.groundwork.candidates import edit_at, sites_of
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import majority_rate, splits_of_task
from steerscope.experiments.tasks import get_task
from steerscope.experiments.validation.options import ValidateOptions, choose_sites
from steerscope.experiments.validation.result import Validation
from steerscope.experiments.validation.validate import validate_ranking
from steerscope.reports.validation.tables import print_validation
from steerscope.sites import Site, SiteKind
from tests.experiments.validation.tiny import examples, loaded_with
from tests.splits import splits_of_examples

OPTIONS = ValidateOptions(
    sites=6, seeds=2, rank=2, steps=4, batch_size=4, num_ranking=24, num_selection=16, num_test=16
)


@pytest.fixture(scope="module")
def loaded():
    return loaded_with("llama")


@pytest.fixture(scope="module")
def splits():
    return splits_of_examples("sums", examples(400))


@pytest.fixture(scope="module")
def whole(loaded, splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *validate_ranking(loaded, splits, OPTIONS, folder)


# --- sites -------------------------------------------------------------------------------------------------


def test_sites_spread_over_depth_and_kinds(loaded):
    deep = loaded_with("llama", **{})
    sites = choose_sites(deep.site_map, 14)
    assert len(set(sites)) == 14
    assert {site.layer for site in sites} == {0, 1, 2, 3}
    assert {site.kind for site in sites} == set(SiteKind) - {SiteKind.RESID_PRE}
    assert list(sites) == sorted(sites, key=lambda s: (s.layer, list(SiteKind).index(s.kind)))
    every = choose_sites(deep.site_map, 28)
    assert len(set(every)) == 28


def test_a_parallel_layout_has_no_resid_mid():
    sites = choose_sites(loaded_with("gpt_neox").site_map, 12)
    assert SiteKind.RESID_MID not in {site.kind for site in sites}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (29, "asked for 29 sites; this model has 28"),
        (("1.mlp_out", "1.hook_mlp_out"), "1.mlp_out is named twice"),
        (("9.mlp_out",), "layers 0 to 3"),
    ],
)
def test_bad_sites(loaded, wanted, message):
    with pytest.raises(InputError, match=message):
        choose_sites(loaded.site_map, wanted)


@pytest.mark.parametrize("field", ["seeds", "rank", "steps", "batch_size", "num_ranking", "num_test", "sites"])
def test_bad_options(field):
    with pytest.raises(InputError, match="expected at least"):
        ValidateOptions(**{field: 0}).check()


# --- data --------------------------------------------------------------------------------------------------


def test_parts_share_no_content(splits):
    parts = [splits.train(1000, 0), splits.selection(30), splits.test(60)]
    prompts = [{e.prompt for e in part} for part in parts]
    assert all(a.isdisjoint(b) for a, b in combinations(prompts, 2))
    assert splits.train(50, 0) != splits.train(50, 1)
    listops = splits_of_task(get_task("listops"))
    drawn = [listops.train(200, 0), listops.selection(64), listops.test(64)]
    texts = [{e.prompt for e in part} for part in drawn]
    assert all(a.isdisjoint(b) for a, b in combinations(texts, 2))


def test_too_few_to_cut():
    with pytest.raises(InputError, match="at least 174 different prompts"):
        splits_of_examples("few", examples(20))


# --- the sweep ---------------------------------------------------------------------------------------------


def test_the_result_is_complete(whole):
    folder, ranking, result = whole
    assert len(result.sites) == 6
    assert [one.method for one in result.references][-2:] == ["lora", "sft"]
    for one in (*result.sites, *result.references):
        assert len(one.losses) == len(one.accuracies) == (2 if one.scores else 1)  # references: one seed
        assert all(math.isfinite(v) for v in one.losses)
        assert len(one.tried) >= 3
        assert one.tried[f"{one.learning_rate:g}"] == min(one.tried.values())
    assert set(result.baselines) <= set(result.agreements)
    assert result.score in result.agreements
    assert result.attainable.num_seeds == 2
    assert result.cost.ratio > 0
    assert result.references[-1].n_params > result.references[-2].n_params > result.sites[0].n_params
    assert (folder / "ranking.json").exists()
    assert ranking.evidence is not None
    assert [p.site for p in ranking.evidence.points] == [s.method for s in result.sites]


def test_it_saves_and_loads(whole, tmp_path):
    _, _, result = whole
    result.save(tmp_path / "validation.json")
    assert Validation.load(tmp_path / "validation.json") == result
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="schema_version"):
        Validation.load(tmp_path / "other.json")
    with pytest.raises(InputError, match="cannot read"):
        Validation.load(tmp_path / "none.json")


def test_asking_again_trains_nothing(whole, loaded, splits, monkeypatch):
    folder, _, result = whole

    def never(*args, **kwargs):
        raise AssertionError("trained although the run is kept")

    monkeypatch.setattr(sweep_module, "train_pack", never)
    _, again = validate_ranking(loaded, splits, OPTIONS, folder)
    assert json.loads(again.to_json()) == json.loads(result.to_json())


@pytest.mark.parametrize("after", [1, 9])
def test_interrupted_anywhere_and_resumed_gives_the_same_table(whole, loaded, splits, tmp_path, monkeypatch, after):
    _, _, result = whole
    made = 0

    def counted(run):
        def until(*args, **kwargs):
            nonlocal made
            made += 1
            if made > after:
                raise KeyboardInterrupt
            return run(*args, **kwargs)

        return until

    monkeypatch.setattr(sweep_module, "train_pack", counted(sweep_module.train_pack))
    with pytest.raises(KeyboardInterrupt):
        validate_ranking(loaded, splits, OPTIONS, tmp_path)
    monkeypatch.undo()
    _, again = validate_ranking(loaded, splits, OPTIONS, tmp_path)
    assert again.agreements == result.agreements
    assert [s.losses for s in again.sites] == [s.losses for s in result.sites]
    assert [s.losses for s in again.references] == [s.losses for s in result.references]


def test_sites_trained_alone_or_among_others_are_the_same(whole, loaded, splits, tmp_path):
    _, _, result = whole
    data = SplitData(loaded, splits, OPTIONS.schedule, OPTIONS.num_selection, OPTIONS.num_test)
    sweep = Sweep(loaded, data, OPTIONS.schedule, RunStore(tmp_path), {})
    alone = sweep.run([edit_at(sites_of(result.sites[3].method), OPTIONS.rank)], OPTIONS.all_seeds)
    assert alone[0].learning_rate == result.sites[3].learning_rate
    assert alone[0].losses == pytest.approx(result.sites[3].losses, abs=1e-4)


def test_it_prints(whole, capsys):
    _, _, result = whole
    print_validation(result)
    out = capsys.readouterr().out
    assert "Attainable with this training noise: Spearman" in " ".join(out.split())
    assert "Scores against trained loss" in out
    for site in result.sites:
        assert site.method in out
    assert max(map(len, out.splitlines())) <= 110


def test_the_report_shows_predicted_against_trained(whole, tmp_path):
    from steerscope import write_report

    _, ranking, _ = whole
    page = write_report(ranking, tmp_path / "report").read_text()
    assert "Predicted against trained" in page
    assert "Which score foresaw training" in page
    assert "Validated by training at 6 sites" in page
    assert "not yet been validated" not in page
    assert (tmp_path / "report/figures/predicted_against_trained.svg").exists()
    assert Ranking.load(tmp_path / "report/ranking.json").evidence == Ranking.from_json(ranking.to_json()).evidence


# --- the baseline of depth and kind ------------------------------------------------------------------------


def test_depth_and_kind_finds_what_made_the_losses():
    sites = [Site(layer, kind) for layer in range(6) for kind in (SiteKind.MLP_OUT, SiteKind.ATTN_OUT)]
    losses = np.array([site.layer + (0.5 if site.kind is SiteKind.ATTN_OUT else 0.0) for site in sites])
    constants = fit(sites, losses, 6)
    assert constants["depth"] > 0.5
    assert constants["kinds"]["attn_out"] > constants["kinds"]["mlp_out"]
    score = depth_and_kind(sites, 6, {"a": constants})
    assert np.argsort(-score).tolist() == np.argsort(losses).tolist()
    unknown = depth_and_kind([Site(0, SiteKind.MLP_IN)], 6, {"a": constants})
    assert np.isfinite(unknown).all()
    assert depth_and_kind(sites, 6, {}) is None


def test_the_majority_rate_is_the_best_constant_in_hindsight():
    def asked(answer: int, choices=(" no", " yes", " maybe")):
        return Example("q", choices[answer], choices, answer)

    assert majority_rate([asked(0), asked(1), asked(1), asked(2)]) == 0.5
    # Other choices for every question: no answer comes twice, but a place does.
    own = [asked(place, tuple(f" {i}{k}" for k in range(3))) for i, place in enumerate([2, 2, 2, 0])]
    assert majority_rate(own) == 0.75
