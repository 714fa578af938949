"""Judging scores by made-up tables whose truth is known: what is compared, what is refused, what is printed."""

import math
from dataclasses import replace

import numpy as np
import pytest

from steerscope import InputError
from steerscope.analysis.shown import LINES, WIDTH
from steerscope.experiments.site_tables.common import common_outcomes
from steerscope.experiments.site_tables.judging import DEPTH_THEN_KIND, Judgement, judge, sites_of
from steerscope.experiments.site_tables.table import SiteTable
from tests.experiments.site_tables.tiny import BETTER, made_up, run, truth_of


@pytest.fixture(scope="module")
def table():
    return made_up()


@pytest.fixture(scope="module")
def judged(table):
    kinds = {site: -BETTER[site.split(".")[1]] for site in truth_of()}
    noise = dict(zip(truth_of(), np.random.default_rng(1).normal(size=24), strict=True))
    return judge(table, {"right": table.scores["right"], "kinds": kinds, "noise": noise})


def test_a_perfect_score_is_found_and_noise_is_none(judged):
    right, noise = judged.scores["right"], judged.scores["noise"]
    assert right.agreement.spearman > 0.97
    assert right.agreement.of_attainable.value == pytest.approx(1, abs=0.02)
    assert right.pairs.share.value == 1
    assert right.regrets[0].loss < 0.02
    assert right.agreement.margins[DEPTH_THEN_KIND].value > 0.2
    assert noise.agreement.low < 0 < noise.agreement.high
    assert noise.agreement.margins["depth"].high < 0.5
    assert judged.attainable.spearman > 0.98


def test_what_depth_cannot_say_is_said_by_pairs(judged):
    depth, kinds = judged.scores["depth"], judged.scores["kinds"]
    assert depth.pairs.share.value == 0.5  # all sites of a layer tie
    assert kinds.pairs.share.value > 0.95
    assert kinds.pairs.share.low > 0.6
    assert kinds.pairs.over["depth"].low > 0.2
    assert judged.num_all_pairs == 6 * 6
    assert 24 <= judged.num_pairs <= 36
    assert judged.baselines == ("depth", "depth_then_kind")


def test_regrets_are_those_of_the_tables_losses(table, judged):
    common = common_outcomes(table)
    losses, accuracies = common.losses.mean(1), common.accuracies.mean(1)
    noise = judged.scores["noise"]
    values = dict(zip(truth_of(), np.random.default_rng(1).normal(size=24), strict=True))
    order = np.argsort([-values[site] for site in common.sites])
    for regret, first in zip(noise.regrets, (1, 3, 5), strict=True):
        assert regret.first == first
        assert regret.loss == pytest.approx(losses[order[:first]].min() - losses.min())
        assert regret.loss_share == pytest.approx(regret.loss / (2.4 - losses.min()))
        assert regret.accuracy == pytest.approx(accuracies.max() - accuracies[order[:first]].max())


def test_a_judgement_shows_itself_and_is_kept(judged, tmp_path):
    lines = str(judged).split("\n")
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    for part in ("Admitted", "A perfect score would have Spearman", "depth, then kind *", "24 sites of 6 layers"):
        assert part in str(judged), part
    judged.save(tmp_path / "judged.json")
    assert Judgement.load(tmp_path / "judged.json") == judged
    assert "right agrees best" in repr(judged)


def test_many_scores_fit_a_screen(table):
    scores = {f"score_{i}": {site: math.sin(i + j) for j, site in enumerate(truth_of())} for i in range(20)}
    text = str(judge(table, scores))
    assert len(text.split("\n")) <= LINES
    assert "depth, then kind" in text
    assert "16 more scores: --json" in " ".join(text.split())


def test_the_tables_own_scores_are_judged(table):
    assert set(judge(table).scores) == {"right", "depth", "depth_then_kind", *judge(table).trained}
    held = replace(table, scores={"gradient_norm": table.scores["right"], "depth": table.scores["right"]})
    found = judge(held)
    assert found.baselines == ("gradient_norm", "depth", "depth_then_kind")
    assert found.scores["depth"].pairs.share.value == 0.5  # ours, not the file's
    assert found.scores["depth"].agreement.margin < 0  # picked again: the best baseline is the other one


def test_other_spellings_of_a_site_are_read(table):
    spelled = {site.replace("resid_post", "post-block"): value for site, value in table.scores["right"].items()}
    assert judge(table, {"mine": spelled}).scores["mine"].agreement.spearman > 0.97


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"0.mlp_in": None}, "score 'mine' has no value for 0.mlp_in; expected one for each of the table's 24 sites"),
        ({"0.mlp_in": math.nan}, "score 'mine' of 0.mlp_in is NaN"),
        ({"0.mlp_in": "1"}, "is '1'; expected a number"),
        ({"0.mlp_in": True}, "is True; expected a number"),
        ({"here": 1.0}, "cannot read the site 'here'"),
    ],
)
def test_scores_that_are_none_are_refused(table, change, says):
    values = {site: value for site, value in (table.scores["right"] | change).items() if value is not None}
    with pytest.raises(InputError, match=says):
        judge(table, {"mine": values})


def test_the_name_of_a_baseline_is_taken(table):
    with pytest.raises(InputError, match="'depth' is the name of a baseline"):
        judge(table, {"depth": table.scores["right"]})


# --- which sites and seeds ---------------------------------------------------------------------------------


def test_an_unfinished_table_is_judged_on_the_seeds_that_most_sites_have(table):
    # The last seed has reached a few sites, the second one most of them.
    runs = tuple(
        one
        for one in table.runs
        if not (one.seed == 2 and int(one.site[0]) > 0) and not (one.seed == 1 and one.site == "5.mlp_in")
    )
    common = common_outcomes(replace(table, runs=runs))
    assert common.seeds == (0, 1)
    assert len(common.sites) == 23
    assert common.num_left_out == 1
    assert common.losses.shape == (23, 2)
    of_site = {(one.site, one.seed): one.loss for one in runs if one.accuracy is not None and one.steps == 32}
    for site, losses in zip(common.sites, common.losses, strict=True):
        assert list(losses) == [of_site[site, 0], of_site[site, 1]]
    assert "1 site without all of the seeds left out" in " ".join(str(judge(replace(table, runs=runs))).split())


def test_a_table_of_few_sites_is_refused(table):
    few = replace(table, runs=tuple(one for one in table.runs if one.site.startswith("0.")))
    with pytest.raises(InputError, match="has 4 tested sites; at least 6 are needed"):
        judge(few)
    assert len(sites_of(table)) == 24


def test_a_diverged_run_is_the_worst_of_all(table):
    rng = np.random.default_rng(0)
    runs = tuple(
        run(one.site, one.learning_rate, one.seed, math.inf, rng) if one.site == "0.mlp_in" and one.accuracy else one
        for one in table.runs
    )
    broken = replace(table, runs=runs)
    found = judge(broken, {"right": table.scores["right"]})
    assert found.scores["right"].regrets[0].loss > 1
    assert found.scores["right"].pairs.share.value < 1
    assert found.num_sites == 24


def test_a_table_is_kept_and_read(table, tmp_path):
    table.save(tmp_path / "table.json")
    assert judge(SiteTable.load(tmp_path / "table.json")) == judge(table)
