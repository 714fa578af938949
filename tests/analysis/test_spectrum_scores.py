"""Scores that need a spectrum, against dense computations written here from the formulas, without eigenvectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from steerscope.analysis.data.examples import Example
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.converged import PENALTIES, Converged
from steerscope.analysis.scoring.kernels import Kernel
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.scores import Candidate, Needs, compute_scores, ranking_scores, relative_length
from steerscope.analysis.scoring.scores.learned_at_n import effective_ridge
from steerscope.analysis.scoring.spectrum import RIDGES, Spectrum, chosen_ridge
from steerscope.errors import InputError
from steerscope.models.load import wrap_model
from tests.analysis.test_scores import NUM_GROUPS, Case, Side, case_of, regression, sides
from tests.tiny import tiny_model, tiny_tokenizer

NAMES = ranking_scores(Needs.SPECTRUM)
NUM_TRAINING = 300


def vector_features(case: Case) -> torch.Tensor:
    return case.features[:, :4] + 0.2


def candidate_of(case: Case) -> Candidate:
    def made(features: torch.Tensor, vector: Candidate | None = None) -> Candidate:
        kernel = case.kernel_of(features)
        found = case.candidate(kernel, relative_length(kernel.probe, 1.0, 1.0))
        converged = Converged.of(case.target, found.problem, case.rows, case.curvature)
        return replace(found, converged=converged, vector=vector, num_training=NUM_TRAINING)

    return made(case.features, made(vector_features(case)))


# --- the formulas, densely ---


def unit(kernel: np.ndarray) -> np.ndarray:
    return kernel / np.mean(np.diag(kernel))


def decrease(case: Case, rows: list[int], update: np.ndarray) -> float:
    """Return what an update of some rows lowers the loss by, prompt by prompt."""
    total, residual = 0.0, case.rows.residual.numpy()
    for e in sorted({int(case.rows.example[r]) for r in rows}):
        mine = [k for k, r in enumerate(rows) if case.rows.example[r] == e]
        u, fisher = update[mine], case.curvature[e].numpy()[: len(mine), : len(mine)]
        total += u @ residual[rows][mine] - u @ fisher @ u / 2
    return total


def converged_updates(case: Case, left_out: int | None, penalty: float) -> list[tuple[Side, np.ndarray, np.ndarray]]:
    """Return, per direction, the update that fine-tuning ends with: with its mean, and without."""
    kernel, residual = unit((case.target_features @ case.target_features.T).numpy()), case.rows.residual.numpy()
    group, found = case.rows.group.tolist(), []
    for side in sides(case, left_out):
        inside = kernel[np.ix_(side.train, side.train)] + penalty * np.eye(len(side.train))
        update = kernel[:, side.train] @ np.linalg.inv(inside) @ residual[side.train]
        centred = update.copy()
        for r in range(len(update)):
            same = [q for q in side.train if group[q] == group[r]]
            centred[r] -= np.mean([update[q] for q in same]) if same else 0.0
        found.append((side, update, centred))
    return found


def dense_penalty(case: Case) -> float:
    def gain(penalty: float) -> float:
        return sum(decrease(case, s.test, update[s.test]) for s, update, _ in converged_updates(case, None, penalty))

    return max(PENALTIES, key=gain)


def dense_ridge(case: Case, kernel: np.ndarray, targets: list[tuple[Side, np.ndarray]]) -> float:
    """Return the ridge with the least error when every prompt is predicted from the others, each fit made anew."""

    def error(ridge: float) -> float:
        total = 0.0
        for side, values in targets:
            for e in sorted({int(case.rows.example[r]) for r in side.train}):
                out = [r for r in side.train if case.rows.example[r] == e]
                rest = replace(side, train=[r for r in side.train if r not in out])
                total += ((values[out] - regression(kernel, rest, values, ridge, out)) ** 2).sum()
        return total

    return min(RIDGES, key=error)


def dense_share(case: Case, kernel: np.ndarray, left_out: int | None) -> float:
    penalty = dense_penalty(case)
    ridge = dense_ridge(case, kernel, [(s, centred) for s, _, centred in converged_updates(case, None, penalty)])
    error = size = 0.0
    for side, _, centred in converged_updates(case, left_out, penalty):
        guess = regression(kernel, side, centred, ridge, side.test)
        error += ((centred[side.test] - guess) ** 2).sum()
        size += (centred[side.test] ** 2).sum()
    return 1 - error / size


def dense_learned(case: Case, kernel: np.ndarray, left_out: int | None) -> float:
    residual, one = case.rows.residual.numpy(), unit(kernel)
    ridge = dense_ridge(case, kernel, [(side, residual) for side in sides(case, None)])
    left = whole = 0.0
    kept = {r for side in sides(case, left_out) for r in side.train}
    for side in sides(case, None):
        inside = one[np.ix_(side.train, side.train)] / len(side.train)
        count = NUM_TRAINING * len(side.train) / len({int(case.rows.example[r]) for r in side.train})
        eye = np.eye(len(inside))

        def excess(kappa: float, inside: np.ndarray = inside, eye: np.ndarray = eye, count: float = count) -> float:
            return np.trace(inside @ np.linalg.inv(inside + kappa * eye)) + ridge / kappa - count

        kappa = brentq(excess, 1e-9, 1e6, xtol=1e-15, rtol=1e-14)
        error = kappa * np.linalg.inv(inside + kappa * eye) @ residual[side.train]
        for e in {int(case.rows.example[r]) for r in side.train}:
            mine = [k for k, r in enumerate(side.train) if case.rows.example[r] == e]
            if side.train[mine[0]] in kept:
                fisher = case.curvature[e].numpy()[: len(mine), : len(mine)]
                left += error[mine] @ fisher @ error[mine]
                whole += residual[side.train][mine] @ fisher @ residual[side.train][mine]
    return 1 - left / whole


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_score_equals_the_dense_computation_on_every_column(seed: int) -> None:
    case = case_of(seed)
    found = compute_scores(candidate_of(case), Needs.SPECTRUM)
    kernel = case.kernel.probe.numpy()
    vector = (vector_features(case) @ vector_features(case).T).numpy()
    both = unit(kernel) + unit(vector)
    assert set(found) == set(NAMES) == {"converged_share", "reading_gain", "learned_at_n"}
    for column, left_out in enumerate((None, *range(NUM_GROUPS))):
        share = dense_share(case, kernel, left_out)
        gain = dense_share(case, both, left_out) - dense_share(case, vector, left_out)
        expected = {
            "converged_share": share,
            "reading_gain": gain,
            "learned_at_n": dense_learned(case, kernel, left_out),
        }
        for name, value in expected.items():
            assert float(found[name][column]) == pytest.approx(value, rel=1e-7, abs=1e-8), (name, column)


def test_the_penalty_is_where_fine_tuning_does_best_and_looks_at_no_site() -> None:
    chosen = set()
    for seed in range(6):
        case = case_of(seed)
        found = candidate_of(case).converged
        assert found is not None
        assert found.penalty == dense_penalty(case)
        assert found.decreases[found.penalty] == max(found.decreases.values())
        per_prompt = sum(decrease(case, s.test, u[s.test]) for s, u, _ in converged_updates(case, None, found.penalty))
        assert found.decreases[found.penalty] == pytest.approx(per_prompt / case.rows.num_examples)
        chosen.add(found.penalty)
    assert len(chosen) > 1


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_leaving_a_prompt_out_in_closed_form_is_leaving_it_out(ridge: float) -> None:
    case = case_of(3)
    kernel = case.kernel.probe / case.kernel.scale
    way = case.problem().directions[0]
    target, example = way.residual[0], case.rows.example[way.train]
    error = Spectrum.of(kernel[way.train, way.train]).left_out_error(target, example, ridge)
    expected = 0.0
    for e in example.unique():
        out, rest = example == e, example != e
        inside = kernel[way.train, way.train]
        fit = torch.linalg.solve(
            inside[rest][:, rest] + ridge * torch.eye(int(rest.sum()), dtype=torch.float64), target[rest]
        )
        expected += float((target[out] - inside[out][:, rest] @ fit).pow(2).sum())
    assert error == pytest.approx(expected, rel=1e-9)
    # Leaving single rows out is something else: the control that prompts have several.
    inverse = torch.linalg.inv(kernel[way.train, way.train] + ridge * torch.eye(len(target), dtype=torch.float64))
    assert error != pytest.approx(float(((inverse @ target) / inverse.diagonal()).pow(2).sum()), rel=1e-3)


def test_the_effective_ridge_falls_with_examples_and_nothing_is_learned_from_hardly_any() -> None:
    values = torch.logspace(0, -4, 30, dtype=torch.float64)
    kappas = [effective_ridge(values, 1.0, count) for count in (1e-3, 1.0, 30.0, 1e3, 1e6)]
    assert kappas == sorted(kappas, reverse=True)
    for kappa, count in zip(kappas, (1e-3, 1.0, 30.0, 1e3, 1e6), strict=True):
        assert float((values / (values + kappa)).sum()) + 1 / kappa == pytest.approx(count, rel=1e-9)
    case = case_of(4)
    found = candidate_of(case)
    learned = [
        float(compute_scores(replace(found, num_training=n), Needs.SPECTRUM)["learned_at_n"][0])
        for n in (1, 100, 10**9)
    ]
    assert learned == sorted(learned)
    assert learned[0] < learned[1] < learned[2]
    # From any number of examples, what the kernel cannot reach stays: the projection on the features' span is learned.
    left = whole = 0.0
    for way in found.problem.directions:
        features, residual = case.features[way.train], way.residual[0]
        error = residual - features @ torch.linalg.lstsq(features, residual).solution
        for e in case.rows.example[way.train].unique():
            mine = case.rows.example[way.train] == e
            fisher = case.curvature[e][: int(mine.sum()), : int(mine.sum())]
            left += float(error[mine] @ fisher @ error[mine])
            whole += float(residual[mine] @ fisher @ residual[mine])
    assert learned[2] == pytest.approx(1 - left / whole, abs=1e-5)


def test_a_kernel_of_zero_and_a_vector() -> None:
    case = case_of(5)
    found = candidate_of(case)
    zero = replace(found, kernel=case.kernel_of(torch.zeros_like(case.features)))
    assert all(not values.any() for values in compute_scores(zero, Needs.SPECTRUM).values())
    assert found.vector is not None
    assert not compute_scores(found.vector, Needs.SPECTRUM)["reading_gain"].any()
    without = replace(found, vector=replace(found.vector, kernel=zero.kernel))
    scores = compute_scores(without, Needs.SPECTRUM)
    torch.testing.assert_close(scores["reading_gain"], scores["converged_share"])


def test_halves_of_float32_kernels_agree_with_float64() -> None:
    found = candidate_of(case_of(6))
    kernel = found.kernel
    single = replace(found, kernel=Kernel(kernel.probe.float(), kernel.cross, kernel.loss))
    wide, narrow = (compute_scores(one, Needs.SPECTRUM) for one in (found, single))
    for name in NAMES:
        torch.testing.assert_close(narrow[name], wide[name], rtol=1e-3, atol=1e-3)
    problem, rows = found.problem, found.rows
    targets = [way.residual[0] for way in problem.directions]
    assert chosen_ridge(single.spectra, problem, rows, targets) in RIDGES


# --- in a ranking ---


@pytest.fixture(scope="module")
def prompts() -> list[Example]:
    found = []
    for i in range(24):
        choices = tuple(f" {i + k}" for k in range(3))
        found.append(Example(f"[ MAX {i} {i * 7 % 40} ] =", choices[i % 3], choices, i % 3))
    return found


def test_a_ranking_computes_them_where_they_are_asked_for(prompts: list[Example]) -> None:
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    plain = rank_sites(loaded, prompts)
    assert not set(NAMES) & set(plain.sites[0].scores)
    assert plain.settings.extra == ()
    assert plain.settings.converged_penalty is None
    more = rank_sites(loaded, prompts, RankOptions(extra=("spectrum",), num_training=100))
    assert all(set(NAMES) <= set(site.scores) for site in more.sites)
    assert more.settings.extra == ("spectrum",)
    assert more.settings.num_training == 100
    assert more.settings.converged_penalty in PENALTIES
    old = {(s.layer, s.kind, s.family): s.scores for s in plain.sites}
    for site in more.sites:
        for name, value in old[site.layer, site.kind, site.family].items():
            assert site.scores[name] == value, "extras change no other score"
    assert len({site.scores["converged_share"] for site in more.sites}) > 3
    gains = [site.scores["reading_gain"] for site in more.sites if site.family == "vector"]
    assert gains == [0.0] * len(gains)
    assert any(site.scores["reading_gain"] for site in more.sites if site.family == "linear")


@pytest.mark.parametrize("score", NAMES)
def test_they_order_sites_and_kinds(prompts: list[Example], score: str) -> None:
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    ranking = rank_sites(loaded, prompts, RankOptions(score=score, kinds=("mlp_out", "resid_post")))
    values = [site.scores[score] for site in ranking.sites]
    assert values == [site.score for site in ranking.sites] == sorted(values, reverse=True)
    assert ranking.settings.extra == ("spectrum",)
    assert [kind.score for kind in ranking.kinds] == sorted((kind.score for kind in ranking.kinds), reverse=True)
    assert len(ranking.kinds) == 4
    assert any(site.ci_low < site.score < site.ci_high for site in ranking.sites)


def test_unknown_extras_are_refused() -> None:
    with pytest.raises(InputError, match=r"'place'; expected spectrum or step"):
        RankOptions(extra=("place",)).check()
    with pytest.raises(InputError, match="num_training"):
        RankOptions(num_training=0).check()
