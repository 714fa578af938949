"""A sweep over sites: what is trained, what a budget and an interruption leave, and how work goes on."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from steerscope import Ranking, get_task, wrap_model
from steerscope.errors import InputError
from steerscope.experiments.engine import sweep as engine_sweep
from steerscope.experiments.engine.held_out import hold_out
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.site_tables import SiteTable
from steerscope.experiments.site_tables.scored import with_scores
from steerscope.experiments.sweeping import SweepOptions, sweep_sites
from steerscope.experiments.sweeping.options import spread_sites
from steerscope.experiments.sweeping.recalibration import recalibrate
from steerscope.sites import Site, SiteKind
from tests.byte_models import byte_model, byte_tokenizer

OPTIONS = SweepOptions(
    sites=("0.resid_post", "0.mlp_out", "1.resid_post"),
    rank=2,
    rates=(1e-3, 1e-2, 1e-1),
    tune_layers=1,
    seeds=2,
    steps=4,
    batch_size=4,
    longer=1,
    num_selection=16,
    num_test=16,
    scores=False,
)


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(byte_model(), byte_tokenizer())


def swept(loaded, folder, options=OPTIONS, **more) -> SiteTable:
    return sweep_sites(loaded, splits_of_task(get_task("listops")), options, folder, **more)


@pytest.fixture(scope="module")
def whole(loaded, tmp_path_factory) -> SiteTable:
    return swept(loaded, tmp_path_factory.mktemp("whole") / "sweep")


def numbers(table: SiteTable):
    """All that must be the same whoever computed it when."""
    return [dataclasses.replace(run, seconds=0.0) for run in table.runs], table.base, table.data


def test_every_site_is_trained_with_every_seed_and_some_for_longer(whole):
    assert [str(one.site) for one in whole.outcomes(min_seeds=2)] == ["0.mlp_out", "0.resid_post", "1.resid_post"]
    assert whole.seeds == (0, 1)
    assert list(whole.longer()) == ["0.resid_post"]
    assert all(len(run.train_losses) == run.steps for run in whole.runs)
    # Three rates at one layer of either kind, one at the third site, the second seed, and one for longer.
    assert len(whole.runs) == 2 * 3 + 1 + 3 + 1


def test_a_site_of_a_layer_that_is_not_tuned_takes_the_rate_of_its_kind(whole):
    rates = {str(one.site): (one.learning_rate, one.tuned) for one in whole.outcomes()}
    assert [name for name, (_, tuned) in rates.items() if tuned] == ["0.mlp_out", "1.resid_post"]
    assert rates["0.resid_post"][0] == rates["1.resid_post"][0]


def test_the_cost_counts_the_weights_above_each_site(loaded, whole):
    """Against a count by hand: four operations per weight and token, two blocks of this size."""
    own = [p.numel() for n, p in loaded.model.named_parameters() if "layers.0." in n and "norm" not in n]
    assert whole.cost.runs == len(whole.runs)
    lower = sum(run.steps for run in whole.runs if run.site.startswith("0."))
    upper = sum(run.steps for run in whole.runs if run.site.startswith("1."))
    per_step = whole.cost.operations / (4 * sum(own) * (2 * lower + upper))
    assert 4 * 8 < per_step < 4 * 64  # tokens of a batch of four expressions


def test_the_table_is_read_as_it_was_written(loaded, whole, tmp_path):
    whole.save(tmp_path / "t.json")
    assert SiteTable.load(tmp_path / "t.json") == whole


def test_what_an_interruption_leaves_is_gone_on_with_to_the_same_bits(loaded, whole, tmp_path, monkeypatch):
    calls = itertools.count()
    real = engine_sweep.train_pack

    def interrupted(*args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(engine_sweep, "train_pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swept(loaded, tmp_path / "sweep")
    partial = SiteTable.load(tmp_path / "sweep" / "table.json")
    assert 0 < len(partial.runs) < len(whole.runs)
    monkeypatch.setattr(engine_sweep, "train_pack", real)
    assert numbers(swept(loaded, tmp_path / "sweep")) == numbers(whole)


def test_longer_runs_are_counted_with_all_others(loaded, tmp_path):
    told = []
    swept(loaded, tmp_path / "sweep", progress=lambda *call: told.append(call))
    counts = [(done, total) for stage, done, total in told if stage.startswith("train")]
    assert {total for _, total in counts} == {11}, counts  # as in the first test above
    assert counts[-1] == (11, 11)
    assert [done for done, _ in counts] == sorted(done for done, _ in counts)


def test_a_table_alone_is_enough_to_go_on_from(loaded, whole, tmp_path, monkeypatch):
    """What a machine that is gone has finished is not trained again."""
    kept = {"0.mlp_out", "1.resid_post"}
    part = dataclasses.replace(whole, runs=tuple(run for run in whole.runs if run.site in kept and run.steps == 4))
    (tmp_path / "sweep").mkdir()
    part.save(tmp_path / "sweep" / "table.json")
    trained, real = [], engine_sweep.train_pack

    def counted(pack, *args, **kwargs):
        trained.extend(str(spec.config.sites[0]) for spec in pack.specs)
        return real(pack, *args, **kwargs)

    monkeypatch.setattr(engine_sweep, "train_pack", counted)
    again = swept(loaded, tmp_path / "sweep")
    # Only whole packs are left out, so that bits do not depend on what is kept: 0.mlp_out trains beside 0.resid_post.
    assert "1.resid_post" not in trained
    assert len(trained) < len(whole.runs)

    def rounded(table):
        return [(run.site, run.seed, run.steps, run.learning_rate, run.loss, run.selection_loss) for run in table.runs]

    assert rounded(again) == rounded(whole)
    other = dataclasses.replace(part, task="other")
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other" / "table.json")
    with pytest.raises(InputError, match="made with another task"):
        swept(loaded, tmp_path / "other")


def test_scores_of_the_trained_sites_stand_in_the_table(loaded, whole, tmp_path):
    found = swept(loaded, tmp_path / "sweep", dataclasses.replace(OPTIONS, scores=True))
    assert numbers(found) == numbers(whole)
    ranking = Ranking.load(tmp_path / "sweep" / "ranking.json")
    site = next(one for one in ranking.sites if one.name == "0.mlp_out" and one.family == "linear")
    assert {"learnable_share", "converged_share", "depth", "lens_accuracy"} <= set(found.scores)
    assert {name: own["0.mlp_out"] for name, own in found.scores.items()} == site.scores
    assert all(set(own) == {"0.mlp_out", "0.resid_post", "1.resid_post"} for own in found.scores.values())
    with pytest.raises(InputError, match="another task"):
        with_scores(dataclasses.replace(found, task="other"), ranking)


def test_scores_that_a_table_has_are_not_lost(loaded, tmp_path):
    scored = swept(loaded, tmp_path / "sweep", dataclasses.replace(OPTIONS, scores=True))
    assert scored.scores
    again = swept(loaded, tmp_path / "sweep")
    assert (again.scores, again.ranking) == (scored.scores, scored.ranking)
    assert SiteTable.load(tmp_path / "sweep" / "table.json") == again


def test_a_budget_ends_between_packs_and_leaves_a_table(loaded, whole, tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(engine_sweep.time, "monotonic", lambda: float(next(clock)))
    found = swept(loaded, tmp_path / "sweep", dataclasses.replace(OPTIONS, budget=4 / 60, pack_size=1))
    assert 0 < len(found.runs) < len(whole.runs)
    with pytest.raises(InputError, match="budget"):
        swept(loaded, tmp_path / "other", dataclasses.replace(OPTIONS, budget=1 / 600))


def test_another_sweep_does_not_go_on_in_the_folder(loaded, tmp_path):
    swept(loaded, tmp_path / "sweep", dataclasses.replace(OPTIONS, seeds=1, longer=0, sites="0.mlp_out", rates=(1e-2,)))
    with pytest.raises(InputError, match=r"begun with another .*steps"):
        swept(loaded, tmp_path / "sweep", dataclasses.replace(OPTIONS, steps=5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sites": 100}, "this model has 14"),
        ({"sites": ("0.mlp_out", "0.mlp_out")}, "named twice"),
        ({"sites": ("7.mlp_out",)}, "7"),
        ({"rates": (0.0,)}, "rates"),
        ({"rates": ("a",)}, "rates"),
        ({"steps": 1}, "steps"),
        ({"budget": 0.0}, "budget"),
        ({"family": "no"}, "family"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(loaded, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        swept(loaded, tmp_path / "sweep", dataclasses.replace(OPTIONS, **changes))
    assert not (tmp_path / "sweep").exists()


def test_a_number_of_sites_takes_all_kinds_of_evenly_spread_layers(loaded):
    kinds = len([kind for kind in loaded.site_map.description.kinds if kind is not SiteKind.RESID_PRE])
    found = spread_sites(loaded.site_map, kinds + 1)
    assert len(found) == 2 * kinds
    assert spread_sites(loaded.site_map, SweepOptions(sites="all").sites) == found
    assert spread_sites(loaded.site_map, SweepOptions(sites="0.mlp_out").sites) == (Site(0, SiteKind.MLP_OUT),)


def test_recalibration_finds_the_best_temperature_and_bias_and_no_more(loaded):
    """Against scipy on the same logits; and its held-out loss is that of the recalibrated distribution."""
    from scipy.optimize import minimize

    task = get_task("listops")
    texts = {
        part: [(one.prompt, one.completion, one.choices) for one in task.split(part, n, 0)]
        for part, n in (("train", 60), ("test", 20))
    }
    held = {part: hold_out(own, loaded.tokenizer, None, loaded.model) for part, own in texts.items()}
    found = recalibrate(loaded, held["train"].sequences, held["test"])

    @torch.no_grad()
    def answers(part):
        rows = held[part].sequences
        logits = [loaded.model(torch.tensor([row.ids[:-1]])).logits[0, -1] for row in rows]
        return torch.stack(logits).double(), torch.tensor([row.ids[-1] for row in rows])

    logits, wanted = answers("train")
    tokens = sorted(found.bias)

    def loss(parameters, logits=logits, wanted=wanted):
        parameters = torch.as_tensor(parameters, dtype=torch.float64)
        moved = logits * parameters[0].exp()
        moved[:, tokens] += parameters[1:]
        return float(torch.nn.functional.cross_entropy(moved, wanted))

    best = minimize(loss, [0.0] * (1 + len(tokens)), method="BFGS")
    ours = [-torch.tensor(found.temperature).log(), *found.bias.values()]
    assert loss(ours) == pytest.approx(best.fun, abs=1e-4)
    assert loss(ours) < loss([0.0] * (1 + len(tokens))) - 0.1
    test_logits, test_wanted = answers("test")
    assert found.after.loss == pytest.approx(loss(ours, test_logits.clone(), test_wanted), abs=1e-5)
