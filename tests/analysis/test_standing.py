"""Three classes of candidates, and sets and halves judged by the score that was asked for."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from steerscope import RankOptions, rank_sites, wrap_model
from steerscope.analysis.data.examples import Example
from steerscope.analysis.results import Ranking, SiteScore
from steerscope.analysis.scoring.intervals import jackknife_interval
from steerscope.analysis.scoring.scores import all_scores, get_score
from steerscope.analysis.scoring.stability import top_agreement
from steerscope.analysis.scoring.standing import MARGIN, standing_of
from tests.tiny import tiny_model, tiny_tokenizer

SITE_FIELDS = {"difference", "difference_low", "difference_high", "standing"}


@cache
def ranked(score: str) -> Ranking:
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer(), name="tiny")
    examples = [
        Example(f"{a}+{b}=", str((a + b) % 10), tuple("0123456789"), (a + b) % 10) for a in range(6) for b in range(4)
    ]
    return rank_sites(loaded, examples, RankOptions(score=score, max_sites=3, exact=True))


@pytest.mark.parametrize(
    ("low", "high", "standing"),
    [
        (-0.01, 0.05, "equal"),
        (0.01, 0.05, "equal"),  # surely worse, and surely by too little to matter
        (0.0, 0.0, "equal"),
        (0.01, 0.06, "worse"),
        (0.2, 0.3, "worse"),
        (-0.01, 0.06, "undetermined"),
        (0.0, 0.06, "undetermined"),
    ],
)
def test_standing(low, high, standing):
    assert standing_of(low, high, 0.05) == standing


@pytest.mark.parametrize("score", ["learnable_share", "predicted_loss_bounded"])
def test_standings_of_a_ranking_follow_from_paired_intervals(score):
    ranking = ranked(score)
    best = ranking.sites[0]
    assert ranking.equal_margin == pytest.approx(MARGIN * abs(best.score))
    assert (best.standing, best.difference, best.difference_high) == ("equal", 0, 0)
    for site in ranking.sites:
        assert site.difference == pytest.approx(best.score - site.score, abs=1e-12)
        assert site.ties_with_best == (site.difference_low <= 0)
        assert site.standing == standing_of(site.difference_low, site.difference_high, ranking.equal_margin)
    assert {site.standing for site in ranking.sites} > {"equal"} or score == "learnable_share"


def test_files_of_before_are_read():
    ranking = ranked("learnable_share")
    site = {name: value for name, value in vars(ranking.sites[0]).items() if name not in SITE_FIELDS}
    assert SiteScore(**site).standing is None
    assert Ranking.from_json(ranking.to_json()) == ranking


@pytest.mark.parametrize("score", ["predicted_loss_bounded", "own_direction", "gradient_capture"])
def test_a_set_and_the_halves_are_judged_by_the_score_asked_for(score):
    ranking, usual = ranked(score), ranked("learnable_share")
    assert ranking.set_score == ranking.kind_score == ranking.stability.score == score
    best = ranking.best("linear")
    first = ranking.greedy[0]
    assert (first.layer, first.kind) == (best.layer, best.kind)
    assert first.score == pytest.approx(best.score, rel=1e-4)
    assert first.ci_low == pytest.approx(best.ci_low, rel=1e-2, abs=1e-4)
    grown = [step.score for step in ranking.greedy]
    assert grown == sorted(grown)
    assert ranking.stability != usual.stability


def test_what_has_no_sets_says_by_what_they_are():
    for score in ("depth", "gradient_norm", "converged_share"):
        ranking = ranked(score)
        assert ranking.set_score == "learnable_share"
        assert ranking.greedy[0].score == pytest.approx(
            max(s.scores["learnable_share"] for s in ranking.sites if s.family == "linear"), abs=1e-6
        )
    assert ranked("converged_share").stability.score == "converged_share"
    assert ranked("depth").stability.score == "learnable_share"


def test_intervals_of_shares_end_at_one():
    replicates = torch.tensor([0.95, 0.7, 0.99, 0.9], dtype=torch.float64)
    assert jackknife_interval(replicates)[2] > 1
    assert jackknife_interval(replicates, 1.0) == (*jackknife_interval(replicates)[:2], 1.0)
    for score in all_scores():
        assert get_score(score.name).highest == (1.0 if score.is_share else float("inf"))
    ranking = ranked("in_sample_share")
    assert max(row.ci_high for row in (*ranking.sites, *ranking.kinds, *ranking.greedy)) <= 1


def test_top_agreement():
    up = torch.arange(40.0)
    assert top_agreement(up, up) == 1
    assert top_agreement(up, -up) == 0
    assert top_agreement(up, torch.zeros(40)) == pytest.approx(0.5 * (0.5 + 0.5), abs=0.26)
    assert top_agreement(up[:3], up[:3]) is None
    # Bad sites apart, the rest is noise: all sites agree well, the best ones hardly.
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 40, generator=generator)
    bad = torch.arange(40) < 20
    one, other = (row - 5 * bad for row in noise)
    assert 0.6 < top_agreement(one, other) < 0.9
