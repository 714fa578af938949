"""What the fast pass records is what dense derivatives say: every site, every linear map, every sort of output.

Truth comes from ``reference`` alone: Jacobians of the sequences' scores with respect to every edit and every weight,
made into rows (example, probe) here, from the definitions. Both meet as kernels over these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import Probes, make_probes
from steerscope.analysis.data.encoding import Encoded, OutputMode, encode
from steerscope.analysis.data.examples import Example
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.models import true_float64
from steerscope.models.load import LoadedModel, wrap_model
from steerscope.sites import Site, SiteKind
from tests.equivalence import reference
from tests.tiny import FAMILIES, LAYOUTS, VOCAB, tiny_model, tiny_tokenizer

# Two ways to the same float64 numbers: products of up to a few hundred terms in another order.
RTOL = 1e-9
# A negative control must miss by far more than that.
CLEARLY = 1e-3

# Shortest first; the number of tokens and of choices differs from example to example.
CHOICES = (
    Example("MAX 4 9 =", " 9", (" 9", " 4"), 0),
    Example("MIN [ 3 8 ] =", " 3", (" 8", " 3", " 1", " 7"), 1),
)
LONG_CHOICES = (
    Example("MIN [ 3 8 ] =", " 3 maybe", (" 3", " 3 maybe", " 8 8 8"), 1),
    Example("SM [ 5 1 7 2 ] =", " no", (" yes 2", " no"), 1),
)
COMPLETIONS = (
    Example("MIN [ 3 8 ] =", " 3 yes"),
    Example("SM [ 5 1 7 2 ] =", " 6 no 2"),
)
SETS = {
    OutputMode.CHOICE_LOGITS: CHOICES,
    OutputMode.CHOICE_LIKELIHOODS: LONG_CHOICES,
    OutputMode.COMPLETION: COMPLETIONS,
}
# Every layout with every sort of output on two blocks; the other families, one block each, with one sort.
CASES = [(family, mode) for family in LAYOUTS for mode in OutputMode] + [
    (family, OutputMode.CHOICE_LOGITS) for family in FAMILIES if family not in LAYOUTS
]


def named(case) -> str:
    return "-".join(str(part) for part in case) if isinstance(case, tuple) else str(case)


@dataclass(frozen=True)
class Dense:
    """The truth for one model and one set of examples.

    ``rows[name]`` is the Jacobian of the (example, probe) rows, ``loss[name]`` that of every example's
    log-likelihood; names are ``(site, family)`` for edits and a string for weights.
    """

    rows: dict[object, Tensor]
    loss: dict[object, Tensor]
    residual: list[Tensor]
    curvature: list[Tensor]
    rms: dict[Site, Tensor]
    logits: Tensor

    def kernel(self, *names: object) -> tuple[Tensor, Tensor, Tensor]:
        """Return the kernel of one parameter, or the sum over several: rows x rows, rows x loss, loss x loss."""
        parts = [(self.rows[name].flatten(1), self.loss[name].flatten(1)) for name in names]
        return (
            sum(rows @ rows.T for rows, _ in parts),
            sum(rows @ loss.T for rows, loss in parts),
            sum(loss @ loss.T for _, loss in parts),
        )

    def unscaled(self, site: Site) -> Tensor:
        """Return the kernel of the linear edit that reads the site as it is."""
        return self.kernel((site, "raw"))[0]


@cache
def loaded(family: str) -> LoadedModel:
    blocks = {} if family in LAYOUTS else {"num_hidden_layers": 1}
    return wrap_model(tiny_model(family, torch.float64, **blocks), tiny_tokenizer())


@cache
def encoded_set(mode: OutputMode) -> Encoded:
    encoded = encode(SETS[mode], tiny_tokenizer(), 64)
    assert encoded.mode is mode
    return encoded


def probes_of(mode: OutputMode, num_probes: int) -> Probes:
    return make_probes(encoded_set(mode), num_probes, VOCAB, 0, torch.float64)


def sites_of(family: str) -> tuple[Site, ...]:
    return loaded(family).site_map.sites()


def maps_of(family: str) -> list[str]:
    """Return the names of all matrices of the blocks: each is a linear map."""
    model = loaded(family).model
    return [n for n, p in model.named_parameters() if p.dim() == 2 and (".layers." in n or ".h." in n)]


def together(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Return all sequences as one batch, padded on the right, with its mask."""
    width = max(len(s.ids) for s in encoded.sequences)
    ids = torch.tensor([s.ids + (2,) * (width - len(s.ids)) for s in encoded.sequences])
    mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in encoded.sequences])
    return ids, mask


def scores_of(logits: Tensor, encoded: Encoded, probes: Probes) -> list[Tensor]:
    """Return, per example, the numbers of which its outputs are linear combinations.

    ``choice_logits``: the logit of every choice. ``choice_likelihoods``: the log-likelihood of every choice.
    ``completion``: the probes, then the log-likelihood.
    """
    found: list[list[Tensor]] = [[] for _ in encoded.answers]
    for row, sequence in zip(logits, encoded.sequences, strict=True):
        if encoded.mode is OutputMode.CHOICE_LOGITS:
            last = row[len(sequence.ids) - 1]
            found[sequence.example] = [last[token] for token in encoded.choice_tokens[sequence.example]]
            continue
        positions = range(sequence.first_target, len(sequence.ids))
        if encoded.mode is OutputMode.COMPLETION:
            for p in range(probes.num_probes):
                along = [probes.signs[p, t] * (probes.projection[p] @ row[at - 1]) for t, at in enumerate(positions)]
                found[sequence.example].append(sum(along))
        likelihoods = [row[at - 1, sequence.ids[at]] - row[at - 1].logsumexp(0) for at in positions]
        found[sequence.example].append(sum(likelihoods))
    return [torch.stack(values) for values in found]


def log_likelihood_along(logits: Tensor, encoded: Encoded, example: int, probes: Probes) -> tuple[Callable, int]:
    """Return an example's log-likelihood as a function of steps of its outputs along the probes; how many it has."""
    if encoded.mode is not OutputMode.COMPLETION:
        scores = scores_of(logits, encoded, probes)[example]
        basis = probes.contrasts[len(scores)]

        def moved(steps: Tensor) -> Tensor:
            at = scores + steps @ basis
            return at[encoded.answers[example]] - at.logsumexp(0)

        return moved, len(basis)
    sequence = encoded.sequences[example]

    def moved(steps: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for place, position in enumerate(range(sequence.first_target, len(sequence.ids))):
            at = logits[example, position - 1] + (steps * probes.signs[:, place]) @ probes.projection
            total = total + at[sequence.ids[position]] - at.logsumexp(0)
        return total

    return moved, probes.num_probes


def rows_and_losses(jacobian: Tensor, scores: list[Tensor], encoded: Encoded, probes: Probes) -> tuple[Tensor, Tensor]:
    """Turn the Jacobian of all scores into that of (example, probe) rows and that of examples' log-likelihoods."""
    rows, losses = [], []
    parts = jacobian.split([len(values) for values in scores])
    for example, (part, values) in enumerate(zip(parts, scores, strict=True)):
        if encoded.mode is OutputMode.COMPLETION:
            rows.append(part[:-1])
            losses.append(part[-1])
            continue
        values = values.clone().requires_grad_()
        (slope,) = torch.autograd.grad(values[encoded.answers[example]] - values.logsumexp(0), values)
        rows.append(torch.einsum("pc,c...->p...", probes.contrasts[len(values)], part))
        losses.append(torch.einsum("c,c...->...", slope, part))
    return torch.cat(rows), torch.stack(losses)


@cache
def dense(family: str, mode: OutputMode, num_probes: int) -> Dense:
    model, encoded, probes = loaded(family).model, encoded_set(mode), probes_of(mode, num_probes)
    ids, mask = together(encoded)
    run = (lambda logits: torch.cat(scores_of(logits, encoded, probes)), model, ids, mask, None)
    rows, loss, rms = {}, {}, {}
    with true_float64(model):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.detach()
        scores = scores_of(logits, encoded, probes)
        for site in sites_of(family):
            value = reference.site_value(model, ids, mask, None, site)
            rms[site] = value[mask.bool()].square().mean(0).sqrt()
            vector = reference.dense_edit_jacobian(*run, site, "vector")
            raw = reference.dense_edit_jacobian(*run, site, "linear")
            linear = raw / rms[site].clamp_min(1e-30)  # indexed [score, written channel, read channel]
            for edit, jacobian in {"vector": vector, "raw": raw, "linear": linear}.items():
                rows[site, edit], loss[site, edit] = rows_and_losses(jacobian, scores, encoded, probes)
        for name in maps_of(family):
            jacobian = reference.dense_weight_jacobian(*run, name)
            rows[name], loss[name] = rows_and_losses(jacobian, scores, encoded, probes)
        residual, curvature = [], []
        for example in range(encoded.num_examples):
            moved, count = log_likelihood_along(logits, encoded, example, probes)
            zero = torch.zeros(count, dtype=torch.float64)
            residual.append(torch.autograd.functional.jacobian(moved, zero))
            curvature.append(-torch.autograd.functional.hessian(moved, zero))
    return Dense(rows, loss, residual, curvature, rms, logits)


@cache
def captured(family: str, mode: OutputMode, num_probes: int, side: str) -> tuple[Features, Rows]:
    model = loaded(family)
    with true_float64(model.model):
        features = capture(
            model,
            encoded_set(mode),
            probes_of(mode, num_probes),
            SketchPlan(exact=True),
            seed=0,
            batch_size=16,
            padding_side=side,
        )
    return features, Rows.of(features)


def kernel_of(feature_sets: list[Tensor], features: Features, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    found = Kernel.of(feature_sets, features, rows)
    return found.probe, found.cross, found.loss


def gap(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest entry."""
    assert found.shape == expected.shape
    assert found.dtype is torch.float64
    assert expected.abs().max() > 0
    return float((found - expected).abs().max() / expected.abs().max())


def check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    for part, one, other in zip(("rows", "rows x loss", "loss"), found, expected, strict=True):
        assert gap(one, other) < RTOL, f"{what}, {part}: {gap(one, other):.1e} of the largest entry"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", CASES, ids=named)
def test_kernels_equal_dense_jacobians(case, side):
    truth = dense(*case, 2)
    features, rows = captured(*case, 2, side)
    # The likelihoods' examples have at most 3 choices, so there the loss direction is made of the 2 probes.
    assert features.spans is (case[1] is OutputMode.CHOICE_LIKELIHOODS)
    for site in sites_of(case[0]):
        linear = kernel_of([features.linear[site]], features, rows)
        check(linear, truth.kernel((site, "linear")), f"linear edit of {site}")
        vector = kernel_of([features.vector[site.write]], features, rows)
        check(vector, truth.kernel((site, "vector")), f"vector at {site}")
    check(kernel_of(features.weights, features, rows), truth.kernel(*maps_of(case[0])), "all linear maps")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", CASES, ids=named)
def test_residual_and_curvature_are_derivatives_of_the_cross_entropy(case, side):
    truth = dense(*case, 2)
    features, _ = captured(*case, 2, side)
    for example, (residual, curvature) in enumerate(zip(truth.residual, truth.curvature, strict=True)):
        count = len(residual)
        assert features.valid[example].tolist() == [p < count for p in range(2)]
        torch.testing.assert_close(features.residual[example, :count], residual, rtol=RTOL, atol=RTOL)
        torch.testing.assert_close(features.curvature[example, :count, :count], curvature, rtol=RTOL, atol=RTOL)
        assert torch.count_nonzero(features.residual[example, count:]) == 0
        assert torch.count_nonzero(features.curvature[example, count:]) == 0
        assert torch.linalg.eigvalsh(curvature).min() > 0
    assert max(float(residual.abs().max()) for residual in truth.residual) > 0.05


@pytest.mark.parametrize("mode", [OutputMode.CHOICE_LOGITS, OutputMode.CHOICE_LIKELIHOODS])
@pytest.mark.parametrize("family", LAYOUTS)
def test_spanning_probes_make_the_loss_direction(family, mode):
    """With C - 1 probes the loss has no pass of its own; the combination that stands for it is its gradient."""
    num_probes = max(encoded_set(mode).num_choices) - 1
    assert num_probes > 1
    features, rows = captured(family, mode, num_probes, "right")
    own, own_rows = captured(family, mode, 1, "right")
    assert features.spans
    assert not own.spans
    for site in sites_of(family):
        combined = kernel_of([features.linear[site]], features, rows)[2]
        assert gap(combined, kernel_of([own.linear[site]], own, own_rows)[2]) < RTOL
        assert gap(combined, dense(family, mode, 2).kernel((site, "linear"))[2]) < RTOL
    combined = kernel_of(features.weights, features, rows)[2]
    assert gap(combined, kernel_of(own.weights, own, own_rows)[2]) < RTOL


@pytest.mark.parametrize("mode", OutputMode)
@pytest.mark.parametrize("family", LAYOUTS)
def test_loss_and_correctness(family, mode):
    encoded, probes, logits = encoded_set(mode), probes_of(mode, 2), dense(family, mode, 2).logits
    features, _ = captured(family, mode, 2, "left")
    for example in range(encoded.num_examples):
        moved, count = log_likelihood_along(logits, encoded, example, probes)
        loss = -float(moved(torch.zeros(count, dtype=torch.float64)))
        assert float(features.loss[example]) == pytest.approx(loss, rel=RTOL)
        if mode is OutputMode.COMPLETION:
            ids, start = encoded.sequences[example].ids, encoded.sequences[example].first_target
            right = logits[example, start - 1 : len(ids) - 1].argmax(-1).tolist() == list(ids[start:])
        else:
            right = int(scores_of(logits, encoded, probes)[example].argmax()) == encoded.answers[example]
        assert bool(features.correct[example]) is right


@pytest.mark.parametrize("mode", OutputMode)
@pytest.mark.parametrize("family", LAYOUTS)
def test_the_truth_does_not_depend_on_padding(family, mode):
    """The dense Jacobians of the padded batch are those of every sequence run alone."""
    model, encoded = loaded(family).model, encoded_set(mode)
    site = Site(0, SiteKind.ATTN_OUT)
    ids, mask = together(encoded)

    def sums(logits: Tensor, lengths: list[int]) -> Tensor:
        return torch.stack([row[: n - 1].sin().sum() for row, n in zip(logits, lengths, strict=True)])

    lengths = [len(s.ids) for s in encoded.sequences]
    with true_float64(model):
        padded = reference.dense_edit_jacobian(lambda z: sums(z, lengths), model, ids, mask, None, site, "linear")
        for row, sequence in enumerate(encoded.sequences):
            only, length = torch.tensor([sequence.ids]), lengths[row : row + 1]
            alone = reference.dense_edit_jacobian(
                lambda z, n=length: sums(z, n), model, only, None, None, site, "linear"
            )
            assert gap(padded[row], alone[0]) < RTOL


@pytest.mark.parametrize("count", [2, 4])
def test_contrasts_are_an_orthonormal_basis_of_the_centred_choices(count):
    basis = probes_of(OutputMode.CHOICE_LOGITS, 3).contrasts[count]
    assert basis.shape == (count - 1, count)
    torch.testing.assert_close(basis @ basis.T, torch.eye(count - 1, dtype=torch.float64))
    torch.testing.assert_close(basis.sum(1), torch.zeros(count - 1, dtype=torch.float64))


@pytest.mark.parametrize("family", LAYOUTS)
def test_scales_are_those_of_the_examples_asked_for(family):
    """``scale_examples=1``: channels are divided by their rms over the first example's tokens alone."""
    model, encoded, mode = loaded(family), encoded_set(OutputMode.CHOICE_LOGITS), OutputMode.CHOICE_LOGITS
    with true_float64(model.model):
        features = capture(
            model, encoded, probes_of(mode, 2), SketchPlan(exact=True), seed=0, batch_size=2, scale_examples=1
        )
        rows = Rows.of(features)
        ids = torch.tensor([encoded.sequences[0].ids])
        for site in sites_of(family):
            rms = reference.site_value(model.model, ids, None, None, site)[0].square().mean(0).sqrt()
            scaled = (dense(family, mode, 2).rows[site, "raw"] / rms).flatten(1)
            assert gap(Kernel.of([features.linear[site]], features, rows).probe, scaled @ scaled.T) < RTOL
            assert features.read_rms[site] == pytest.approx(float(rms.square().mean().sqrt()), rel=RTOL)


# --- negative controls: what is nearly right is told apart ---

CONTROL = OutputMode.CHOICE_LIKELIHOODS


@pytest.mark.parametrize("family", LAYOUTS)
def test_control_unscaled_reads(family):
    features, rows = captured(family, CONTROL, 2, "right")
    for site in sites_of(family):
        found = Kernel.of([features.linear[site]], features, rows).probe
        raw = dense(family, CONTROL, 2).unscaled(site)
        # also at the same mean diagonal, so that no common factor makes the difference
        assert gap(found, raw) > CLEARLY
        assert gap(found / found.diagonal().mean(), raw / raw.diagonal().mean()) > CLEARLY


@pytest.mark.parametrize("family", LAYOUTS)
def test_control_neighbouring_sites(family):
    """Linear edits of any two sites have different kernels; vectors of any two write points too."""
    truth = dense(family, CONTROL, 2)
    features, rows = captured(family, CONTROL, 2, "right")
    for site in sites_of(family):
        found = Kernel.of([features.linear[site]], features, rows).probe
        vector = Kernel.of([features.vector[site.write]], features, rows).probe
        for other in sites_of(family):
            if other == site:
                continue
            assert gap(found, truth.kernel((other, "linear"))[0]) > CLEARLY, f"{site} and {other}"
            same_point = other.write == site.write or {site.kind, other.kind} <= (
                {SiteKind.ATTN_OUT, SiteKind.MLP_OUT, SiteKind.RESID_POST} if family in ("gpt_neox", "phi") else set()
            )
            if not same_point:
                assert gap(vector, truth.kernel((other, "vector"))[0]) > CLEARLY, f"{site} and {other}"


@pytest.mark.parametrize("family", LAYOUTS)
def test_control_every_map_counts(family):
    truth = dense(family, CONTROL, 2)
    features, rows = captured(family, CONTROL, 2, "right")
    found = Kernel.of(features.weights, features, rows).probe
    for left_out in maps_of(family):
        others = [name for name in maps_of(family) if name != left_out]
        assert gap(found, truth.kernel(*others)[0]) > CLEARLY, left_out


def test_control_signs_of_single_rows():
    truth = dense("llama", CONTROL, 2)
    features, rows = captured("llama", CONTROL, 2, "right")
    site = Site(0, SiteKind.RESID_MID)
    found = Kernel.of([features.linear[site]], features, rows).probe
    expected = truth.kernel((site, "linear"))[0]
    for row in range(len(expected)):
        flip = torch.ones(len(expected), dtype=torch.float64)
        flip[row] = -1
        assert gap(found, expected * flip * flip[:, None]) > CLEARLY


def test_control_padding_counted_in_the_scales():
    truth = dense("gpt2", CONTROL, 2)
    site = Site(0, SiteKind.RESID_MID)
    model = loaded("gpt2").model
    with true_float64(model):
        value = reference.site_value(model, *together(encoded_set(CONTROL)), None, site)
    wrong = (truth.rows[site, "raw"] / value.flatten(0, 1).square().mean(0).sqrt()).flatten(1)
    features, rows = captured("gpt2", CONTROL, 2, "right")
    assert gap(Kernel.of([features.linear[site]], features, rows).probe, wrong @ wrong.T) > CLEARLY
