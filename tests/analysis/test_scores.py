"""Scores, sets, sketches and intervals: on kernels with known answers, and against plain loops written here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.capture.places import PlaceStats
from steerscope.analysis.data.encoding import encode
from steerscope.analysis.data.examples import Example
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.greedy import grow_set
from steerscope.analysis.scoring.intervals import jackknife_interval, spearman
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores import (
    Candidate,
    Needs,
    Place,
    all_scores,
    compute_scores,
    get_score,
    ranking_scores,
    register_score,
    relative_length,
    unregister_score,
)
from steerscope.analysis.scoring.scores.learnable_share import quick_share, share_of
from steerscope.analysis.scoring.scores.predicted_loss_bounded import LONGEST_EDIT
from steerscope.analysis.scoring.scores.table import scores_table
from steerscope.analysis.scoring.sketch_error import sketch_errors
from steerscope.analysis.scoring.stability import learning_curve, stability_of_halves
from steerscope.equivalence.kernels import RidgeFit, gram
from steerscope.equivalence.tangents import combine, linear_tangent, random_projection, vector_tangent
from steerscope.errors import InputError
from steerscope.models.load import LoadedModel, wrap_model
from steerscope.sites import Site, SiteKind
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer

KERNEL_SCORES, PLACE_SCORES = ranking_scores(Needs.KERNEL), ranking_scores(Needs.PLACE)
EXACT = 1e-8  # float64 regressions with condition numbers of a few hundred
NUM_GROUPS = 4


READ_LENGTH = 3.0


@dataclass(frozen=True)
class Case:
    """A synthetic set of examples: features of the target and of a candidate, row by row."""

    rows: Rows
    halves: tuple[range, range]
    curvature: Tensor
    target_features: Tensor
    features: Tensor

    def kernel_of(self, features: Tensor) -> Kernel:
        loss = self.loss_features(features)
        return Kernel(features @ features.T, features @ loss.T, loss @ loss.T)

    def loss_features(self, features: Tensor) -> Tensor:
        """Return every example's loss direction: the residual's combination of its rows."""
        total = torch.zeros(self.rows.num_examples, features.shape[1], dtype=features.dtype)
        for example, residual, row in zip(self.rows.example, self.rows.residual, features, strict=True):
            total[example] += residual * row
        return total

    @property
    def target(self) -> Kernel:
        return self.kernel_of(self.target_features)

    @property
    def kernel(self) -> Kernel:
        return self.kernel_of(self.features)

    def problem(self, *, num_groups: int = NUM_GROUPS, ridge: float = 1.0) -> Problem:
        return Problem.of(self.target, self.rows, self.halves, num_groups=num_groups, ridge=ridge)

    def scores(self, kernel: Kernel | None = None, held_length: float = 1.0) -> dict[str, Tensor]:
        kernel = kernel or self.kernel
        length = relative_length(kernel, READ_LENGTH, held_length)
        return compute_scores(self.candidate(kernel, length))

    def candidate(self, kernel: Kernel, length: Tensor) -> Candidate:
        return Candidate("linear", None, kernel, self.target, self.problem(), self.rows, self.curvature, length)


def of_unit_scale(kernel: torch.Tensor) -> torch.Tensor:
    return kernel / kernel.diagonal().mean()


def case_of(seed: int = 0, num_examples: int = 22, width: int = 8, most: int = 3) -> Case:
    """Draw a case: examples with 1 to ``most`` probes (2 to 4 choices), halves of equal size.

    The residual has a mean, so that fine-tuning has a common direction; the candidate sees part of the target.
    """
    generator = torch.Generator().manual_seed(seed)
    have = torch.randint(1, most + 1, (num_examples,), generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = rows_of(have, normal(int(have.sum())) + 0.7)
    root = normal(num_examples, most, most)
    halves = (range(num_examples // 2), range(num_examples // 2, num_examples))
    scales = torch.linspace(0.5, 2, width, dtype=torch.float64)
    target = torch.cat([normal(len(rows.example), width) * scales, torch.ones(len(rows.example), 1)], dim=1)
    candidate = torch.cat([target[:, width // 2 :], 0.3 * normal(len(target), width)], dim=1)
    return Case(rows, halves, root @ root.mT, target, candidate)


def rows_of(have: Tensor, residual: Tensor) -> Rows:
    """Return the rows of examples with ``have`` probes each."""
    example = torch.repeat_interleave(torch.arange(len(have)), have)
    probe = torch.cat([torch.arange(int(count)) for count in have])
    return Rows(example, probe, have[example] * 1000 + probe, residual, len(have))


# --- the whole recipe in plain loops ---


@dataclass
class Side:
    """One way round, for one column: which rows learn and judge, and the update to learn."""

    train: list[int]
    test: list[int]
    update: np.ndarray
    centred: np.ndarray


def group_of(case: Case, example: int) -> int:
    """Return the jackknife group of an example: every half is cut into as many runs."""
    (half,) = (h for h in case.halves if example in h)
    return (example - half.start) * NUM_GROUPS // len(half)


def sides(case: Case, left_out: int | None) -> list[Side]:
    """Return both ways round as if the examples of group ``left_out`` had never been there."""
    example, group, found = case.rows.example.tolist(), case.rows.group.tolist(), []
    target, loss = case.target_features.numpy(), case.loss_features(case.target_features).numpy()
    kept = [e for e in range(case.rows.num_examples) if left_out is None or group_of(case, e) != left_out]
    for learn, judge in (case.halves, case.halves[::-1]):
        train = [r for r, e in enumerate(example) if e in learn and e in kept]
        test = [r for r, e in enumerate(example) if e in judge and e in kept]
        step = sum(loss[e] for e in learn if e in kept)  # the gradient of the learning half's loss
        update = target @ step
        centred = update.copy()
        for r in range(len(target)):
            same = [q for q in train if group[q] == group[r]]
            if same:
                centred[r] -= np.mean([update[q] for q in same])
        found.append(Side(train, test, update, centred))
    return found


def regression(kernel: np.ndarray, side: Side, values: np.ndarray, ridge: float, judged: list[int]) -> np.ndarray:
    """Fit ``values`` on the learning rows with a kernel of unit mean diagonal (over *all* rows) and predict."""
    unit = kernel / np.mean(np.diag(kernel))
    inside = unit[np.ix_(side.train, side.train)] + ridge * np.eye(len(side.train))
    return unit[np.ix_(judged, side.train)] @ np.linalg.solve(inside, values[side.train])


def plain_scores(case: Case, kernel: np.ndarray, left_out: int | None = None, ridge: float = 1.0) -> dict[str, float]:
    """Return the scores that are regressions, by their definitions."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    residual = case.rows.residual.numpy()
    drop, judged_examples = 0.0, 0
    for side in sides(case, left_out):

        def fit(values: np.ndarray, judged: list[int], side: Side = side) -> tuple[np.ndarray, np.ndarray]:
            return regression(kernel, side, values, ridge, judged), values[judged]

        parts.setdefault("learnable_share", []).append(fit(side.centred, side.test))
        parts.setdefault("learnable_share_with_mean", []).append(fit(side.update, side.test))
        parts.setdefault("in_sample_share", []).append(fit(side.centred, side.train))
        own = fit(residual, side.test)
        parts.setdefault("own_direction", []).append(own)
        parts.setdefault("projected_residual_norm", []).append(fit(residual, side.train))
        for e in sorted({int(case.rows.example[r]) for r in side.test}):
            mine = [k for k, r in enumerate(side.test) if case.rows.example[r] == e]
            u, truth = own[0][mine], own[1][mine]
            fisher = case.curvature[e].numpy()[: len(mine), : len(mine)]
            drop += u @ truth - u @ fisher @ u / 2
            judged_examples += 1
    found = {}
    for name, pairs in parts.items():
        predicted, truth = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        if name == "projected_residual_norm":
            found[name] = math.sqrt(predicted @ truth / (truth @ truth))
        elif name == "own_direction":
            found[name] = predicted @ truth / math.sqrt((predicted @ predicted) * (truth @ truth))
        else:
            found[name] = 1 - ((truth - predicted) ** 2).sum() / (truth**2).sum()
    return found | {"predicted_loss": drop / judged_examples}


def plain_bounded(case: Case, held_length: float, left_out: int | None = None) -> float:
    """Return the bounded predicted loss by its definition: with the edit itself, shortened where it is too long."""
    features, residual = case.features.numpy(), case.rows.residual.numpy()
    scale = np.mean(np.sum(features**2, axis=1))
    total, judged_examples = 0.0, 0
    for side in sides(case, left_out):
        inside = features[side.train] @ features[side.train].T / scale + np.eye(len(side.train))
        edit = features[side.train].T @ np.linalg.solve(inside, residual[side.train]) / scale
        # What a token reads has length READ_LENGTH: the edit moves it by at most its norm times that.
        edit = edit * min(1.0, LONGEST_EDIT * held_length / (np.linalg.norm(edit) * READ_LENGTH))
        for e in sorted({int(case.rows.example[r]) for r in side.test}):
            mine = [r for r in side.test if case.rows.example[r] == e]
            u, fisher = features[mine] @ edit, case.curvature[e].numpy()[: len(mine), : len(mine)]
            total += u @ residual[mine] - u @ fisher @ u / 2
            judged_examples += 1
    return total / judged_examples


def plain_sums(case: Case, left_out: int | None = None) -> dict[str, float]:
    """Return the scores that are sums over pairs, by their definitions."""
    rows = case.rows
    kept = [e for e in range(rows.num_examples) if left_out is None or group_of(case, e) != left_out]
    inside = [r for r in range(len(rows.example)) if int(rows.example[r]) in kept]
    ours, theirs = case.kernel, case.target
    both = alone = other = 0.0
    for i in inside:
        for j in inside:
            a, b = float(ours.probe[i, j]), float(theirs.probe[i, j])
            both, alone, other = both + a * b, alone + a * a, other + b * b
    here = there = norm = 0.0
    for i in kept:
        for j in kept:
            norm += float(ours.loss[i, j])
            if (i in case.halves[0]) != (j in case.halves[0]):
                here, there = here + float(ours.loss[i, j]), there + float(theirs.loss[i, j])
    return {
        "alignment": both / math.sqrt(alone * other),
        "gradient_capture": here / there,
        "gradient_norm": math.sqrt(norm) / len(kept),
    }


@pytest.mark.parametrize("seed", range(3))
def test_every_kernel_score_equals_plain_loops_on_every_column(seed):
    """Column 0 is the whole; column 1 + g is the same computed from scratch without group g's examples.

    One thing stays that of the whole: the scale that gives the kernel a unit mean diagonal.
    """
    case = case_of(seed)
    found = case.scores()
    assert set(found) == set(KERNEL_SCORES)
    for column, left_out in enumerate((None, *range(NUM_GROUPS))):
        expected = plain_scores(case, case.kernel.probe.numpy(), left_out) | plain_sums(case, left_out)
        expected["predicted_loss_bounded"] = plain_bounded(case, 1.0, left_out)
        assert set(expected) == set(KERNEL_SCORES)
        for name, value in expected.items():
            assert float(found[name][column]) == pytest.approx(value, rel=EXACT, abs=EXACT), (name, column)


@pytest.mark.parametrize("seed", range(3))
def test_the_bounded_loss_is_that_of_a_shortened_edit(seed: int) -> None:
    case = case_of(seed)
    free = case.scores()["predicted_loss"]
    for held_length in (0.2, 2.0, 1e6):
        found = case.scores(held_length=held_length)["predicted_loss_bounded"]
        for column, left_out in enumerate([None, *range(NUM_GROUPS)]):
            assert float(found[column]) == pytest.approx(plain_bounded(case, held_length, left_out), rel=1e-8)
    # Where any edit is short the bound says nothing, and where it binds it says something.
    assert torch.allclose(case.scores(held_length=1e6)["predicted_loss_bounded"], free)
    assert not torch.allclose(case.scores(held_length=0.2)["predicted_loss_bounded"], free, rtol=1e-3)


def test_control_the_loops_see_what_a_wrong_recipe_changes():
    case = case_of()
    kernel = case.kernel.probe.numpy()
    right = plain_scores(case, kernel)["learnable_share"]
    assert 0.05 < right < 0.95
    assert abs(plain_scores(case, kernel)["learnable_share_with_mean"] - right) > 1e-3
    assert abs(plain_scores(case, kernel, ridge=0.5)["learnable_share"] - right) > 1e-3
    assert abs(plain_scores(case, kernel, left_out=0)["learnable_share"] - right) > 1e-3
    rescaled = case.kernel.probe[:20, :20].diagonal().mean() / case.kernel.probe.diagonal().mean()
    assert abs(plain_scores(case, kernel, ridge=float(rescaled))["learnable_share"] - right) > 1e-4


@pytest.mark.parametrize("ridge", [0.3, 1.0, 3.0])
def test_three_roads_to_the_learnable_share(ridge):
    case = case_of(3)
    problem, kernel = case.problem(ridge=ridge), case.kernel.probe
    expected = plain_scores(case, kernel.numpy(), ridge=ridge)["learnable_share"]
    assert float(share_of(kernel, problem)[0]) == pytest.approx(expected, abs=EXACT)
    assert quick_share(kernel, problem) == pytest.approx(expected, abs=EXACT)
    assert quick_share(7.5 * kernel, problem) == pytest.approx(expected, abs=EXACT), "the scale is divided out"
    assert quick_share(kernel.float(), problem) == pytest.approx(expected, abs=1e-5)


def test_scores_depend_on_the_kernels_scale_where_they_should_alone():
    case = case_of(4)
    one, nine = case.scores(), case.scores(case.kernel_of(3 * case.features))
    # Three times the features need an edit of a third of the length.
    one["predicted_loss_bounded"] = case.scores(held_length=3.0)["predicted_loss_bounded"]
    for name in KERNEL_SCORES:
        factor = {"gradient_norm": 3.0, "gradient_capture": 9.0}.get(name, 1.0)
        torch.testing.assert_close(nine[name], factor * one[name], rtol=EXACT, atol=EXACT)


def test_mean_energy_is_the_share_of_the_mean_in_the_update():
    case = case_of(5)
    found = sides(case, None)
    energy = sum((side.update[side.train] ** 2).sum() for side in found)
    left = sum((side.centred[side.train] ** 2).sum() for side in found)
    assert case.problem().mean_energy == pytest.approx(1 - left / energy, abs=EXACT)
    # This mean does not carry over to the judging half, where it would make less than nothing: a fraction all the same.
    judged = sum((side.update[side.test] ** 2).sum() - (side.centred[side.test] ** 2).sum() for side in found)
    assert judged < 0
    assert 0 < case.problem().mean_energy < 1
    assert 0.5 < low_rank_case()[0].problem().mean_energy < 1


def test_ridge_fit_without_rows_is_the_fit_of_the_rest():
    case = case_of(6)
    kernel = of_unit_scale(case.kernel.probe)
    targets = case.target_features[:, :3].clone()
    out, kept = slice(4, 9), [r for r in range(len(kernel)) if not 4 <= r < 9]
    targets[out, 1:] = 0
    found = RidgeFit.of(kernel, 0.7).weights_without(targets, [(out, [1, 2])])
    eye = torch.eye(len(kernel), dtype=torch.float64)
    torch.testing.assert_close(found[:, 0], torch.linalg.solve(kernel + 0.7 * eye, targets[:, 0]))
    smaller = kernel[kept][:, kept] + 0.7 * eye[: len(kept), : len(kept)]
    torch.testing.assert_close(found[kept][:, 1:], torch.linalg.solve(smaller, targets[kept, 1:]))
    assert torch.count_nonzero(found[out, 1:]) == 0


def test_several_groups_left_out_are_each_the_fit_of_the_rest():
    case = case_of(6)
    kernel = case.kernel.probe / case.kernel.scale
    targets, count = case.target_features[:, :3].clone(), len(kernel)
    groups = [slice(0, 4), slice(4, 9)]
    for column, out in enumerate(groups):
        targets[out, column] = 0
    found = RidgeFit.of(kernel, 0.7).weights_without(targets, [(out, [n]) for n, out in enumerate(groups)])
    for column, out in enumerate(groups):
        kept = [row for row in range(count) if not out.start <= row < out.stop]
        rest = kernel[kept][:, kept] + 0.7 * torch.eye(len(kept), dtype=torch.float64)
        torch.testing.assert_close(found[kept, column], torch.linalg.solve(rest, targets[kept, column]))


def test_a_kernel_by_its_features_has_the_scores_of_the_matrix():
    case = case_of(7)
    matrix = case.kernel
    by_features = Kernel(None, matrix.cross, matrix.loss, case.features, lambda: gram(case.features))
    expected, found = case.scores(matrix), case.scores(by_features)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("most", [1, 3])
def test_products_with_loss_directions_are_sums_over_the_rows_of_an_example(most):
    """With as many rows for each example, which are added up in one product, and with some more than others."""
    case = case_of(8, most=most)
    assert (len(torch.unique(torch.bincount(case.rows.example))) == 1) == (most == 1)
    torch.testing.assert_close(case.rows.along_loss(case.features).T, case.loss_features(case.features))


# --- known answers ---


def low_rank_case(seed: int = 0) -> tuple[Case, Tensor]:
    """A target of 3 directions over 80 examples, and the indicator features that make the mean per probe."""
    case = case_of(seed, num_examples=80, width=3)
    means = torch.nn.functional.one_hot(torch.unique(case.rows.group, return_inverse=True)[1]).double()
    return case, means


def test_a_target_in_the_span_of_the_kernel_is_learned():
    case, means = low_rank_case()
    features = torch.cat([case.target_features, means], dim=1)
    scores = case.scores(case.kernel_of(features))
    assert scores["learnable_share"].min() > 0.9
    assert scores["in_sample_share"].min() > 0.9
    assert scores["learnable_share_with_mean"].min() > 0.9
    # less ridge, more of it: what is missing is shrinkage alone
    shares = [quick_share(features @ features.T, case.problem(ridge=ridge)) for ridge in (1.0, 0.1, 0.01)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9999


def test_its_own_kernel_captures_and_aligns_perfectly():
    case, _ = low_rank_case()
    scores = case.scores(case.target)
    ones = torch.ones(1 + NUM_GROUPS, dtype=torch.float64)
    torch.testing.assert_close(scores["alignment"], ones)
    torch.testing.assert_close(scores["gradient_capture"], ones)


def test_a_kernel_orthogonal_to_the_update_learns_nothing():
    case = case_of(7)
    features = case.features.clone()
    for side in sides(case, None):
        u = torch.zeros(len(features), dtype=torch.float64)
        u[side.train] = torch.from_numpy(side.centred[side.train])
        features -= torch.outer(u, u @ features) / (u @ u)
    assert float(share_of(features @ features.T, case.problem())[0]) == pytest.approx(0, abs=1e-10)
    assert quick_share(features @ features.T, case.problem()) == pytest.approx(0, abs=1e-10)


def test_noise_learns_less_than_nothing():
    case = case_of(8, num_examples=60)
    generator = torch.Generator().manual_seed(1)
    shares = []
    for _ in range(20):
        noise = torch.randn(len(case.features), 60, generator=generator, dtype=torch.float64)
        shares.append(quick_share(noise @ noise.T, case.problem()))
    assert np.mean(shares) < 0
    assert max(shares) < 0.1


def test_only_the_mean_is_no_share():
    """A kernel that shifts all prompts alike learns the mean update, which the default score leaves out."""
    case, means = low_rank_case(1)
    scores = case.scores(case.kernel_of(means))
    assert abs(scores["learnable_share"][0]) < 0.05
    assert scores["learnable_share_with_mean"][0] == pytest.approx(case.problem().mean_energy, abs=0.1)
    assert case.problem().mean_energy > 0.2


def test_a_kernel_of_zero_scores_zero():
    case = case_of()
    zero = case.kernel_of(torch.zeros_like(case.features))
    scores = case.scores(zero)
    assert set(scores) == set(KERNEL_SCORES)
    assert all(torch.equal(v, torch.zeros(1 + NUM_GROUPS, dtype=torch.float64)) for v in scores.values())


@pytest.mark.parametrize("share", [quick_share, lambda k, p: float(share_of(k, p)[0])])
def test_a_kernel_of_zero_has_no_share(share):
    case = case_of()
    assert share(torch.zeros_like(case.kernel.probe), case.problem()) == 0


@pytest.mark.parametrize("counts", [(1, 3), (3, 1)])
def test_a_probe_that_only_the_other_half_has(counts):
    """Half the examples have 2 choices, half 4: the extra probes have no mean to remove and still count."""
    base = case_of(9, num_examples=16)
    have = torch.tensor([counts[0]] * 8 + [counts[1]] * 8)
    generator = torch.Generator().manual_seed(2)
    residual, *columns = torch.randn(19, int(have.sum()), generator=generator, dtype=torch.float64)
    rows, target, features = rows_of(have, residual), torch.stack(columns[:9], 1), torch.stack(columns[9:], 1)
    case = Case(rows, base.halves, base.curvature, target, features)
    scores = case.scores()
    for column, left_out in enumerate((None, *range(NUM_GROUPS))):
        for name, value in plain_scores(case, case.kernel.probe.numpy(), left_out).items():
            assert float(scores[name][column]) == pytest.approx(value, rel=EXACT, abs=EXACT), (name, column)


def test_place_scores():
    sites = [Site(layer, SiteKind.MLP_OUT) for layer in range(5)]
    case = case_of()

    def place_scores(site: Site, seed: int, family: str = "linear") -> dict[str, float]:
        kernel = case.kernel
        candidate = case.candidate(kernel, relative_length(kernel.probe, 1.0, 1.0))
        place = Place(site, 5, 2.5, 4.0, PlaceStats(0.75, 0.2, 1.5))
        scores = compute_scores(replace(candidate, place=place, seed=seed, family=family), Needs.PLACE)
        gradient = scores.pop("relative_gradient_norm")
        torch.testing.assert_close(gradient, compute_scores(candidate)["gradient_norm"] / 4.0)
        assert all(len(set(values.tolist())) == 1 for values in scores.values()), "places have no sampling error"
        return {name: float(values[0]) for name, values in scores.items()}

    found = [place_scores(site, 0) for site in sites]
    assert set(found[0]) | {"relative_gradient_norm"} == set(PLACE_SCORES)

    def best(name: str) -> int:
        return max(range(5), key=lambda k: found[k][name])

    assert (best("depth"), best("middle_layer"), best("last_layer"), best("depth_then_kind")) == (0, 2, 4, 0)
    assert all(f["activation_norm"] == 2.5 for f in found)
    assert all((f["lens_accuracy"], f["block_change"], f["feature_norm"]) == (0.75, 0.2, -1.5) for f in found)
    earlier = place_scores(Site(1, SiteKind.ATTN_HEADS), 0)["depth_then_kind"]
    assert place_scores(Site(1, SiteKind.RESID_POST), 0)["depth_then_kind"] > earlier > found[2]["depth_then_kind"]
    assert all(0 <= f["random"] < 1 for f in found)
    assert len({f["random"] for f in found}) == 5
    assert place_scores(sites[0], 0) == found[0]
    assert place_scores(sites[0], 1)["random"] != found[0]["random"]
    assert place_scores(sites[0], 0, "vector")["random"] != found[0]["random"]


# --- sets ---


def candidates(case: Case, count: int = 6) -> dict[Site, Tensor]:
    """Return unit-scale kernels that each see some columns of the target, with noise."""
    generator, found = torch.Generator().manual_seed(3), {}
    for k in range(count):
        part = case.target_features[:, k : k + 3]
        noise = torch.randn(len(part), 5, generator=generator, dtype=torch.float64)
        kernel = gram(torch.cat([part, 0.1 * noise], dim=1))
        found[Site(k, SiteKind.MLP_OUT)] = kernel / kernel.diagonal().mean()
    return found


def sites_of(steps) -> list[Site]:
    return [Site(step.layer, SiteKind(step.kind)) for step in steps]


def test_greedy_takes_what_brute_force_takes():
    case = case_of(12, num_examples=40)
    kernels, problem = candidates(case), case.problem()
    steps = grow_set(kernels, problem, dict.fromkeys(kernels, 10), max_sites=3, budget=None)

    def share(*members: Site) -> float:
        return plain_scores(case, sum(kernels[s] for s in members).numpy())["learnable_share"]

    first = max(kernels, key=share)
    second = max((s for s in kernels if s != first), key=lambda s: share(first, s))
    assert sites_of(steps)[:2] == [first, second]
    assert steps[0].score == pytest.approx(share(first), abs=EXACT)
    assert steps[1].score == pytest.approx(share(first, second), abs=EXACT)
    assert [s.step for s in steps] == [1, 2, 3]
    assert [s.n_params for s in steps] == [10, 20, 30]
    for size, step in enumerate(steps, start=1):
        total = sum(kernels[s] for s in sites_of(steps)[:size])
        assert (step.score, step.ci_low, step.ci_high) == jackknife_interval(share_of(total, problem), 1.0)


def test_greedy_keeps_to_the_budget():
    case = case_of(12, num_examples=40)
    kernels, problem = candidates(case), case.problem()
    free = grow_set(kernels, problem, dict.fromkeys(kernels, 1), max_sites=6, budget=None)
    best = sites_of(free)[0]
    prices = {site: 100 if site == best else 30 for site in kernels}
    assert len(free) == 3
    steps = grow_set(kernels, problem, prices, max_sites=6, budget=95)
    assert best not in sites_of(steps)
    assert [step.n_params for step in steps] == [30, 60]
    # one parameter less than the second step needs, and it is not taken
    assert grow_set(kernels, problem, prices, max_sites=6, budget=60) == steps
    assert grow_set(kernels, problem, prices, max_sites=6, budget=59) == steps[:1]
    assert grow_set(kernels, problem, prices, max_sites=6, budget=29) == ()
    assert len(grow_set(kernels, problem, prices, max_sites=2, budget=None)) == 2
    assert len(set(sites_of(free))) == len(free), "no site twice"


def test_greedy_stops_when_nothing_is_gained():
    case, means = low_rank_case()
    right = gram(torch.cat([case.target_features, means], dim=1))
    generator = torch.Generator().manual_seed(4)
    noises = [torch.randn(len(right), 200, generator=generator, dtype=torch.float64) for _ in range(3)]
    kernels = {Site(k, SiteKind.MLP_OUT): of_unit_scale(gram(noise)) for k, noise in enumerate(noises)}
    good = Site(7, SiteKind.RESID_POST)
    kernels[good] = of_unit_scale(right)
    ticks: list[tuple[int, int]] = []
    steps = grow_set(
        kernels,
        case.problem(),
        dict.fromkeys(kernels, 1),
        max_sites=4,
        budget=None,
        progress=lambda *tick: ticks.append(tick),
    )
    assert sites_of(steps) == [good]
    assert ticks == [(1, 4)]


# --- sketches ---


def test_tangent_features_are_sums_over_tokens():
    generator = torch.Generator().manual_seed(0)
    grad, read = (torch.randn(2, 5, d, generator=generator, dtype=torch.float64) for d in (3, 4))
    expected = sum(grad[:, t, :, None] * read[:, t, None, :] for t in range(5))
    torch.testing.assert_close(linear_tangent(grad, read), expected)
    torch.testing.assert_close(combine(grad, read), expected.flatten(1))
    torch.testing.assert_close(vector_tangent(grad), sum(grad[:, t] for t in range(5)))


def sketched(grad: Tensor, read: Tensor, blocks: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        random_projection(blocks * size, t.shape[-1], blocks=blocks, generator=generator) for t in (grad, read)
    )
    return gram(combine(grad @ left.T, read @ right.T, blocks))


def test_sketches_are_unbiased_and_get_better_with_blocks():
    """The mean over many sketches is the kernel; the error of one falls like one over the root of the blocks."""
    generator = torch.Generator().manual_seed(1)
    grad, read = (torch.randn(8, 6, d, generator=generator, dtype=torch.float64) for d in (200, 180))
    exact = gram(combine(grad, read))
    draws, errors = 40, []
    for blocks in (2, 8, 32):
        kernels = torch.stack([sketched(grad, read, blocks, 4, seed) for seed in range(draws)])
        errors.append(float((kernels - exact).flatten(1).norm(dim=1).pow(2).mean().sqrt() / exact.norm()))
        # The mean of independent draws errs by the error of one over the root of their number.
        assert float((kernels.mean(0) - exact).norm() / exact.norm()) < 1.6 * errors[-1] / math.sqrt(draws)
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize(("blocks", "size"), [(16, 16), (1, 64), (8, 4)])
def test_the_stated_variance_for_one_token(blocks, size):
    """``((1 + 2/p)(1 + 2/q) - 1) / blocks``, the variance of an estimated squared length."""
    generator = torch.Generator().manual_seed(2)
    grad, read = (torch.randn(1, 1, 30, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = float(gram(combine(grad, read)))
    found = []
    for _ in range(400):
        # Independent rows, which is what the formula is about; orthogonal ones vary less.
        left, right = (
            torch.randn(blocks * size, 30, generator=generator, dtype=torch.float64) / math.sqrt(size) for _ in range(2)
        )
        found.append(float(gram(combine(grad @ left.T, read @ right.T, blocks))) / exact)
    stated = ((1 + 2 / size) ** 2 - 1) / blocks
    assert np.mean(found) == pytest.approx(1, abs=4 * math.sqrt(stated / 400))
    assert np.var(found) == pytest.approx(stated, rel=0.35)


@pytest.mark.parametrize(("rows", "width", "blocks"), [(32, 24, 4), (24, 24, 3), (12, 30, 2), (100, 7, 10)])
def test_projections_keep_inner_products_on_average(rows, width, blocks):
    generator = torch.Generator().manual_seed(4)
    drawn = torch.stack([random_projection(rows, width, blocks=blocks, generator=generator) for _ in range(300)])
    assert drawn.shape == (300, rows, width)
    eye = torch.eye(width, dtype=torch.float64)
    for block in drawn.chunk(blocks, dim=1):
        mean = torch.einsum("sri,srj->ij", block, block) / 300
        # entries of one block's P^T P vary by 1/sqrt(rows per block)
        assert (mean - eye).abs().max() < 5 / math.sqrt(300 * rows / blocks)


@cache
def examples() -> tuple[Example, ...]:
    found = []
    for k in range(16):
        numbers = [(3 * k + 7 * j) % 29 for j in range(3)]
        choices = tuple(f" {n}" for n in sorted({*numbers, (5 * k) % 29}))[:3]
        found.append(Example(f"MAX [ {' '.join(map(str, numbers))} ] =", choices[k % 3], choices, k % 3))
    return tuple(found)


@cache
def loaded(width: int) -> LoadedModel:
    return wrap_model(tiny_model("llama", hidden_size=width, intermediate_size=width), tiny_tokenizer())


@cache
def captured(width: int, plan: SketchPlan, seed: int = 0) -> tuple[Features, Rows]:
    model = loaded(width)
    encoded = encode(examples(), model.tokenizer, 64)
    probes = make_probes(encoded, 2, VOCAB, 0, torch.float32)
    features = capture(model, encoded, probes, plan, seed=seed, batch_size=16)
    return features, Rows.of(features)


EXACT_PLAN = SketchPlan(exact=True)
PLAN = SketchPlan(exact=False, blocks=4, size=8, weight_size=24)
SEEDS = 12


def all_kernels(width: int, plan: SketchPlan, seed: int = 0) -> dict[object, Tensor]:
    features, rows = captured(width, plan, seed)
    found: dict[object, Tensor] = {site: Kernel.of([f], features, rows).probe for site, f in features.linear.items()}
    found |= {(site, "vector"): Kernel.of([f], features, rows).probe for site, f in features.vector.items()}
    return {
        name: k.double() for name, k in (found | {"all": Kernel.of(features.weights, features, rows).probe}).items()
    }


def test_sketched_kernels_of_a_model_average_to_the_exact_ones():
    """Sites, vectors and the sum over all linear maps, over seeds of the sketch."""
    exact = all_kernels(16, EXACT_PLAN)
    draws = [all_kernels(16, PLAN, seed) for seed in range(SEEDS)]
    for name, expected in exact.items():
        kernels = torch.stack([draw[name] for draw in draws])
        single = float((kernels - expected).flatten(1).norm(dim=1).pow(2).mean().sqrt() / expected.norm())
        mean = float((kernels.mean(0) - expected).norm() / expected.norm())
        assert mean < 2 * single / math.sqrt(SEEDS) + 4e-3, name  # bfloat16 features: 2^-8
        assert single < 0.6, name
    singles = [draw["all"] for draw in draws]
    assert not torch.equal(singles[0], singles[1])


def reported_and_true(width: int, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sketch_error and score_error (squared) as reported and as they are, ``seed (reported, true)``."""
    exact_features, rows = captured(width, EXACT_PLAN)
    target = Kernel.of(exact_features.weights, exact_features, rows)
    problem = Problem.of(target, rows, (range(8), range(8, 16)), num_groups=0, ridge=1.0)
    exact, sites = all_kernels(width, EXACT_PLAN), list(exact_features.linear)
    errors, scores = [], []
    for seed in range(num_seeds):
        features, _ = captured(width, PLAN, seed)
        kernels = all_kernels(width, PLAN, seed)
        report = sketch_errors(features, rows, problem, sites, PLAN)
        assert report["num_sites_measured"] == len(sites)
        true = np.mean([float((kernels[s] - exact[s]).norm() / exact[s].norm()) for s in sites])
        errors.append((report["sketch_error"], true))
        gaps = [quick_share(kernels[s], problem) - quick_share(exact[s].double(), problem) for s in sites]
        scores.append((report["score_error"] ** 2, np.mean(np.square(gaps))))
    return np.array(errors), np.array(scores)


def test_reported_sketch_errors_are_the_true_ones_within_a_factor_of_two():
    """Measured without the exact kernels, which are known here. 32 rows of projection for 64 channels."""
    errors, scores = reported_and_true(64, 4)
    assert np.all(errors[:, 1] > 0.05)
    assert np.all((errors[:, 0] / errors[:, 1] > 0.5) & (errors[:, 0] / errors[:, 1] < 2))
    assert 0.5 < math.sqrt(scores[:, 0].mean() / scores[:, 1].mean()) < 2


def test_reported_sketch_errors_of_narrow_sites_are_the_true_ones_within_a_factor_of_two():
    """With more rows of projection than channels the halves are drawn apart, so that neither completes the other."""
    errors, _ = reported_and_true(16, 4)
    assert np.all((errors[:, 0] / errors[:, 1] > 0.5) & (errors[:, 0] / errors[:, 1] < 2))


# --- intervals and stability ---


def test_jackknife_of_a_mean_is_the_textbook_interval():
    """With groups of one observation: Student's interval of the mean. With larger ones: that of the group means."""
    sample = np.random.default_rng(0).exponential(size=24)
    for size in (1, 2, 4):
        groups = sample.reshape(-1, size)
        replicates = [sample.mean()] + [np.delete(groups, g, axis=0).mean() for g in range(len(groups))]
        value, low, high = jackknife_interval(torch.tensor(replicates))
        means = groups.mean(1)
        half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
        assert (value, low, high) == pytest.approx((sample.mean(), sample.mean() - half, sample.mean() + half))


def test_jackknife_covers_at_its_level():
    """2000 samples of 36 in 12 groups: 95% within 1.5% (three standard errors of the count)."""
    draw, covered = np.random.default_rng(1), 0
    for _ in range(2000):
        groups = draw.normal(size=(12, 3)) + 0.7
        total = groups.sum()
        replicates = np.concatenate([[total / 36], (total - groups.sum(1)) / 33])
        _, low, high = jackknife_interval(torch.from_numpy(replicates))
        covered += low <= 0.7 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_rank_correlation():
    up = torch.arange(5.0)
    assert spearman(up, up**3) == pytest.approx(1)
    assert spearman(up, -up) == pytest.approx(-1)
    assert spearman(up, torch.zeros(5)) is spearman(torch.ones(5), up) is None  # undefined, and said so
    assert spearman(up[:1], up[:1]) is None


@pytest.mark.parametrize("seed", range(4))
def test_noise_cannot_tell_sites_apart_and_a_signal_can(seed):
    case = case_of(20 + seed, num_examples=64, width=12)
    generator = torch.Generator().manual_seed(seed)
    noise, signal = {}, {}
    for k in range(30):
        drawn = torch.randn(len(case.features), 24, generator=generator, dtype=torch.float64)
        weight = k / 29
        noise[Site(k, SiteKind.MLP_IN)] = gram(drawn)
        mixed = weight * gram(case.target_features) / 12 + (1 - weight) * gram(drawn) / 24
        signal[Site(k, SiteKind.MLP_IN)] = mixed
    found = [stability_of_halves(k, case.target, case.rows, case.halves, 1.0) for k in (noise, signal)]
    assert not found[0].can_tell
    assert abs(found[0].spearman) < 0.5
    assert found[1].can_tell
    assert found[1].spearman > 0.8
    assert found[1].top_overlap >= 0.7 > found[0].top_overlap
    assert {f.n_per_half for f in found} == {32}


def test_learning_curves_rise_and_end_at_the_share():
    case, means = low_rank_case(2)
    kernel, problem = gram(torch.cat([case.target_features, means], dim=1)), case.problem()
    counts, shares = learning_curve(kernel, problem, case.rows)
    assert counts == (5, 10, 20, 30, 40)
    assert shares[-1] == pytest.approx(quick_share(kernel, problem))
    assert list(shares) == sorted(shares)
    assert shares[0] < shares[-1] - 0.05
    # the second point by the definition: fitted on the first ten prompts of each half, judged on all of the other
    error = size = 0.0
    for side in sides(case, None):
        start = int(case.rows.example[side.train[0]])
        first = [r for r in side.train if case.rows.example[r] < start + 10]
        fewer = Side(first, side.test, side.update, side.centred)
        predicted = regression(kernel.numpy(), fewer, side.centred, 1.0, side.test)
        error += ((side.centred[side.test] - predicted) ** 2).sum()
        size += (side.centred[side.test] ** 2).sum()
    assert shares[1] == pytest.approx(1 - error / size, abs=EXACT)


# --- the list of scores ---


@pytest.fixture
def own_score():
    @register_score(label="kernel scale", meaning="how far a unit step of the edit moves the outputs")
    def kernel_scale(candidate: Candidate) -> float:
        """Mean of the kernel's diagonal."""
        return candidate.kernel.scale

    yield "kernel_scale"
    unregister_score("kernel_scale")


def test_a_score_of_ones_own_orders_the_sites(own_score):
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    examples = [Example(f"[ MAX {i} {i * 7 % 40} ] =", f" {i}", (f" {i}", f" {i + 1}"), 0) for i in range(24)]
    ranking = rank_sites(loaded, examples, RankOptions(score=own_score, kinds=("mlp_out", "resid_post")))
    values = [site.scores[own_score] for site in ranking.sites]
    assert values == sorted(values, reverse=True)
    assert [site.score for site in ranking.sites] == values
    assert values[0] > values[-1] > 0
    assert get_score(own_score).formula == "Mean of the kernel's diagonal."


def test_names_of_scores_are_taken_once_and_unknown_ones_refused(own_score):
    with pytest.raises(InputError, match="there is a score 'kernel_scale' already"):
        register_score(label="", meaning="")(get_score(own_score).compute)
    unregister_score(own_score)
    with pytest.raises(InputError, match="no score 'kernel_scal'"):
        get_score("kernel_scal")


def test_every_score_says_what_it_is():
    for score in all_scores():
        assert score.formula, score.name
        assert score.label, score.name
        assert score.meaning, score.name
        assert not score.meaning.endswith("."), score.name
    assert [name for name in ranking_scores() if get_score(name).is_share] == [
        "learnable_share",
        "learnable_share_with_mean",
        "in_sample_share",
    ]


def test_the_docs_list_the_scores_as_they_are_registered():
    page = (Path(__file__).parents[2] / "docs/scores.md").read_text(encoding="utf-8")
    assert scores_table() in page, "write scores_table() into docs/scores.md"
