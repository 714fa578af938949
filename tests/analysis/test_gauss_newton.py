"""The Gauss-Newton step against one made from whole Jacobians, one prompt at a time, and full forward passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from steerscope.analysis.capture.capture import capture, read_stats
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.outputs import Probes, make_probes
from steerscope.analysis.data.encoding import Encoded, encode_for
from steerscope.analysis.data.examples import Example, content_order
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.gauss_newton import LENGTHS, best_of_rank
from steerscope.analysis.scoring.intervals import jackknife_interval
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scorer import Scorer
from steerscope.analysis.scoring.spectrum import RIDGES
from steerscope.models.hooks import edited
from steerscope.models.load import LoadedModel, wrap_model
from steerscope.sites import Site, parse_site
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer


def prompts() -> list[Example]:
    found = []
    for i in range(24):
        choices = tuple(f" {(i + k) % 30}" for k in range(3))
        words = " ".join(str(i * (j + 3) % 31) for j in range(1 + i % 3))
        found.append(Example(f"[ MAX {i} {words} ] =", choices[i % 3], choices, i % 3))
    return found


@dataclass(frozen=True)
class Subject:
    """A tiny model in float64 with its prompts, outputs and what sites read."""

    loaded: LoadedModel
    encoded: Encoded
    probes: Probes
    scales: dict[Site, Tensor]

    @classmethod
    def of(cls, family: str) -> Subject:
        loaded = wrap_model(tiny_model(family).double(), tiny_tokenizer())
        examples = prompts()
        encoded = encode_for(loaded, [examples[i] for i in content_order(examples, 0)])
        probes = make_probes(encoded, 4, VOCAB, 0, torch.float64)
        stats = read_stats(loaded, encoded, batch_size=8, max_examples=64)
        return cls(loaded, encoded, probes, stats.scales)

    def choice_logits(self, example: int, site: Site, edit: Tensor) -> Tensor:
        """Return the logits of a prompt's choices under an edit: a matrix of what is read, scaled, or a vector."""

        def added(read: Tensor) -> Tensor:
            return edit if edit.dim() == 1 else (read / self.scales[site]) @ edit.T

        with edited(self.loaded.model, self.loaded.site_map, {site: added}):
            logits = self.loaded.model(input_ids=torch.tensor([self.encoded.sequences[example].ids])).logits[0, -1]
        return logits[list(self.encoded.choice_tokens[example])]

    def loss(self, example: int, site: Site, edit: Tensor) -> float:
        with torch.no_grad():
            return -float(self.choice_logits(example, site, edit).log_softmax(-1)[self.encoded.answers[example]])


def dense_decreases(subject: Subject, site: Site, family: str, rank: int) -> np.ndarray:
    """Return ``length prompt`` of the second half, from explicit Jacobians and a solution for the edit itself."""
    width = subject.loaded.site_map.width(site)
    zero = torch.zeros(width, dtype=torch.float64) if family == "vector" else torch.zeros(width, width).double()
    basis, count = subject.probes.contrasts[3], subject.encoded.num_examples
    jacobians, residuals, fishers = [], [], []
    for example in range(count):

        def outputs(edit: Tensor, example: int = example) -> Tensor:
            return basis @ subject.choice_logits(example, site, edit)

        jacobians.append(torch.autograd.functional.jacobian(outputs, zero).flatten(1))
        with torch.no_grad():
            p = subject.choice_logits(example, site, zero).softmax(-1)
        one_hot = torch.eye(3, dtype=torch.float64)[subject.encoded.answers[example]]
        residuals.append(basis @ (one_hot - p))
        fishers.append(basis @ (torch.diag(p) - torch.outer(p, p)) @ basis.T)
    unit = float(torch.cat(jacobians).pow(2).sum(1).mean())
    half = count // 2
    steps = []
    for ridge in RIDGES:
        # The edit that minimises the quadratic model: (J^T C J / unit + ridge) A = J^T r / unit.
        normal = sum(j.T @ c @ j for j, c in zip(jacobians[:half], fishers[:half], strict=True)) / unit
        pull = sum(j.T @ r for j, r in zip(jacobians[:half], residuals[:half], strict=True)) / unit
        step = torch.linalg.solve(normal + ridge * torch.eye(len(pull), dtype=torch.float64), pull)
        loss = 0.0
        for j, r, c in zip(jacobians[half:], residuals[half:], fishers[half:], strict=True):
            u = j @ step
            loss += float(u @ c @ u / 2 - u @ r)
        steps.append((loss, step))
    step = min(steps, key=lambda pair: pair[0])[1].reshape(zero.shape)
    if family == "linear":
        left, values, right = torch.linalg.svd(step)
        step = (left[:, :rank] * values[:rank]) @ right[:rank]
    judged = range(half, count)
    before = np.array([subject.loss(example, site, zero) for example in judged])
    return np.array([before - [subject.loss(e, site, length * step) for e in judged] for length in LENGTHS])


def scored(subject: Subject, rank: int, sites: list[Site], batch_size: int = 5) -> Scorer:
    features = capture(
        subject.loaded, subject.encoded, subject.probes, SketchPlan(exact=True), seed=0, batch_size=batch_size
    )
    rows, halves = Rows.of(features), (range(12), range(12, 24))
    target = Kernel.of(features.weights, features, rows)
    problem = Problem.of(target, rows, halves, num_groups=3, ridge=1.0)
    options = RankOptions(rank=rank, batch_size=batch_size, score="gauss_newton_step")
    scorer = Scorer(subject.loaded, features, rows, target, problem, options)
    scorer.add(sites)
    scorer.take_steps(subject.encoded, subject.probes, halves)
    return scorer


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("0.resid_mid", "1.mlp_hidden", "1.resid_post")),
        ("gpt_neox", ("0.attn_out", "1.attn_heads")),
        ("gemma2", ("0.resid_pre", "1.mlp_in")),
    ],
)
def test_a_step_lowers_the_loss_as_one_from_whole_jacobians_does(family: str, names: tuple[str, ...]) -> None:
    subject, sites, rank = Subject.of(family), [parse_site(name) for name in names], 2
    found = {(s.name, s.family): s for s in scored(subject, rank, sites).site_scores()}
    assert len(found) == 2 * len(sites)
    for site in sites:
        for kind_of_edit in ("linear", "vector"):
            decreases = dense_decreases(subject, site, kind_of_edit, rank)
            best = decreases[decreases.mean(1).argmax()]
            score = found[str(site), kind_of_edit]
            assert score.score == pytest.approx(best.mean(), rel=1e-5, abs=1e-9), (site, kind_of_edit)
            groups = np.arange(12) * 3 // 12
            without = [best[groups != g].mean() for g in range(3)]
            expected = jackknife_interval(torch.tensor([best.mean(), *without], dtype=torch.float64))
            assert (score.ci_low, score.ci_high) == pytest.approx(expected[1:], rel=1e-4, abs=1e-9)


def test_batches_change_no_step_and_the_rank_does() -> None:
    subject, sites = Subject.of("llama"), [parse_site("0.mlp_out")]
    settings, found = ((1, 4), (1, 24), (16, 24)), []
    for rank, batch_size in settings:
        scores = scored(subject, rank, sites, batch_size).site_scores()
        found.append(next(one.score for one in scores if one.family == "linear"))
    one, other, fuller = found
    assert one == pytest.approx(other, rel=1e-9)
    assert fuller != pytest.approx(one, rel=1e-3)


def test_the_nearest_matrix_of_a_rank_is_the_truncated_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (20, 160):
        left, right = (
            torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0] for _ in "ab"
        )
        values = 0.5 ** torch.arange(size, dtype=torch.float64)
        up, down = best_of_rank((left * values) @ right, 3)
        assert up.shape == (size, 3)
        torch.testing.assert_close(up @ down, (left[:, :3] * values[:3]) @ right[:3])
    assert best_of_rank(torch.eye(2), 8)[0].shape == (2, 2)


def test_a_ranking_takes_steps_where_it_is_asked_to_and_leaves_the_model_alone() -> None:
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    ids = torch.tensor([[3, 4, 5]])
    before = loaded.model(input_ids=ids).logits
    ticks: list[tuple[str, int, int]] = []
    ranking = rank_sites(
        loaded,
        prompts(),
        RankOptions(score="gauss_newton_step", kinds=("mlp_out", "resid_post")),
        progress=lambda *tick: ticks.append(tick),
    )
    values = [site.scores["gauss_newton_step"] for site in ranking.sites]
    assert values == [site.score for site in ranking.sites] == sorted(values, reverse=True)
    assert {site.family for site in ranking.sites} == {"linear", "vector"}
    assert ranking.settings.extra == ("step",)
    steps = [tick[1:] for tick in ticks if tick[0] == "step"]
    assert steps[-1][0] == steps[-1][1] > 4
    assert ranking.timing["step"] > 0
    assert torch.equal(loaded.model(input_ids=ids).logits, before)
    twins = {(s.layer, s.kind): s.score for s in ranking.sites if s.family == "vector"}
    assert twins[0, "mlp_out"] == pytest.approx(twins[0, "resid_post"], abs=2e-6), "one vector under two names"
