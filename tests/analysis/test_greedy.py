"""Candidates for a set are compared on some of the prompts first, and the best there on all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerscope.analysis.scoring import greedy
from steerscope.analysis.scoring.greedy import grow_set
from steerscope.analysis.scoring.joint import JointScores
from steerscope.analysis.scoring.scores import Needs, ranking_scores
from steerscope.analysis.scoring.triangles import Triangle, Triangles
from steerscope.equivalence.kernels import gram
from steerscope.sites import Site, SiteKind
from tests.analysis.test_scores import Case, case_of

KERNEL_SCORES = ranking_scores(Needs.KERNEL)
CASE = case_of(3, num_examples=40)
SITES = [Site(layer, SiteKind.MLP_OUT) for layer in range(6)]


def features_of(layer: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(layer)
    part = CASE.target_features[:, layer : layer + 2]
    return torch.cat([part, 0.03 * torch.randn(len(part), 5, generator=generator, dtype=torch.float64)], dim=1)


def joint_of(case: Case, score: str = "learnable_share") -> JointScores:
    kernels = {site: case.kernel_of(features_of(site.layer)) for site in SITES}
    return JointScores(
        score,
        case.candidate(kernels[SITES[0]], 1.0),
        Triangles({site: Triangle(kernel.probe, unit=kernel.unit) for site, kernel in kernels.items()}),
        {site: kernel.loss / kernel.unit for site, kernel in kernels.items()},
        {site: kernel.scale for site, kernel in kernels.items()},
        dict.fromkeys(SITES, 1.0),
        lambda site: case.candidate(kernels[site], 1.0),
    )


def share_by_hand(members: list[Site], count: int) -> float:
    """Return the share of a set, learned and judged on the first prompts of either half, in plain algebra."""
    features = torch.cat(
        [features_of(s.layer) / gram(features_of(s.layer)).diagonal().mean().sqrt() for s in members], 1
    )
    firsts = [torch.isin(CASE.rows.example, torch.tensor(list(half)[:count])) for half in CASE.halves]
    kernel = gram(features)
    scale = kernel.diagonal()[firsts[0] | firsts[1]].mean()
    error = size = 0.0
    for way, learned, judged in zip(CASE.problem().directions, firsts, firsts[::-1], strict=True):
        update = torch.zeros(len(kernel), dtype=torch.float64)
        update[way.train], update[way.test] = way.update[0][:, 0], way.update[1][:, 0]
        own = kernel[learned][:, learned]
        weights = torch.linalg.solve(own + scale * torch.eye(len(own), dtype=torch.float64), update[learned])
        error += float((update[judged] - kernel[judged][:, learned] @ weights).pow(2).sum())
        size += float(update[judged].pow(2).sum())
    return 1 - error / size


@pytest.mark.parametrize("count", [5, 11, 20])
def test_the_share_on_some_prompts_is_that_of_plain_algebra(count):
    found = joint_of(CASE).on_first(count).with_each(SITES[:2], SITES[2:])
    assert found == [pytest.approx(share_by_hand([*SITES[:2], site], count), abs=1e-9) for site in SITES[2:]]


@pytest.mark.parametrize("score", KERNEL_SCORES)
def test_all_prompts_are_a_part_too(score):
    joint = joint_of(CASE, score)
    found, expected = (one.with_each(SITES[:1], SITES[1:]) for one in (joint.on_first(20), joint))
    assert found == pytest.approx(expected, abs=1e-9)
    assert expected == [pytest.approx(float(joint.of_set([SITES[0], site])[0]), abs=1e-9) for site in SITES[1:]]


@pytest.mark.parametrize("score", KERNEL_SCORES)
def test_other_prompts_are_not_looked_at(score):
    joint = joint_of(CASE, score)
    before = joint.on_first(7).with_each(SITES[:1], SITES[1:])
    assert before != pytest.approx(joint.with_each(SITES[:1], SITES[1:]), abs=1e-3)
    left_out = torch.tensor([example % 20 >= 7 for example in range(40)])
    rows = left_out[CASE.rows.example]
    for triangle in joint.units.kept.values():
        kernel = triangle.whole()
        kernel[rows] = kernel[:, rows] = float("nan")
        triangle._panels = Triangle(kernel)._panels
    for loss in joint.losses.values():
        loss[left_out] = loss[:, left_out] = float("nan")
    curvature = CASE.curvature.clone()
    curvature[left_out] = float("nan")
    joint.like = replace(joint.like, curvature=curvature)
    assert joint.on_first(7).with_each(SITES[:1], SITES[1:]) == before


def grown(joint: JointScores, max_sites: int = 4) -> list[Site]:
    steps = grow_set(
        joint.units, CASE.problem(), dict.fromkeys(SITES, 1), max_sites=max_sites, budget=None, joint=joint
    )
    return [Site(step.layer, SiteKind(step.kind)) for step in steps]


def test_of_the_best_on_some_prompts_the_best_on_all_is_taken(monkeypatch):
    monkeypatch.setattr(greedy, "SCREENED_ON", 5)
    expected, joint = grown(joint_of(CASE)), joint_of(CASE)
    assert len(expected) > 2
    monkeypatch.setattr(greedy, "FINALISTS", 2)
    members: list[Site] = []
    for site in grown(joint):
        others = [one for one in SITES if one not in members]
        if members:
            glance = joint.on_first(6).with_each(members, others)  # a third of the twenty of a half
            others = [others[place] for place in torch.tensor(glance).topk(2).indices.tolist()]
        values = joint.with_each(members, others)
        assert site == others[values.index(max(values))]
        members.append(site)
    monkeypatch.setattr(greedy, "FINALISTS", len(SITES))
    assert grown(joint_of(CASE)) == expected


def test_a_half_that_is_too_small_for_a_part_is_looked_at_as_a_whole(monkeypatch):
    monkeypatch.setattr(greedy, "FINALISTS", 1)
    monkeypatch.setattr(JointScores, "on_first", None)
    assert len(grown(joint_of(CASE))) > 2  # of 20 prompts 32 cannot be taken
