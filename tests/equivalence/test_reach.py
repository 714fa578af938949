"""Formulas about one edit for all tokens against slow references: dense least squares, dense Jacobians, brute force."""

from __future__ import annotations

import pytest
import torch

from steerscope.equivalence import reach
from steerscope.equivalence.propositions import p45_token_jacobians as jacobians
from steerscope.equivalence.propositions.block_tokens import data_sets
from steerscope.equivalence.propositions.subject import random_subject
from steerscope.equivalence.propositions.texts import new_contexts

N, P, K, D = 30, 4, 6, 3


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, P, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 100.0, 0.01, 3.0])
    m = torch.randn(N, K, generator=generator, dtype=torch.float64) + 0.3 * x[:, :1]
    return x, m


def dense_edit_error(x: torch.Tensor, shift: torch.Tensor, bias: bool) -> float:
    """Best A (and b) by least squares over all entries at once: one column per entry of A."""
    n, d = shift.shape
    reads = torch.cat((x, torch.ones(n, 1, dtype=x.dtype)), dim=1) if bias else x
    design = torch.zeros(n * d, d * reads.shape[1], dtype=x.dtype)
    for t in range(n):
        for out in range(d):
            design[t * d + out, out * reads.shape[1] : (out + 1) * reads.shape[1]] = reads[t]
    target = shift.reshape(-1, 1)
    return float((target - design @ torch.linalg.lstsq(design, target, driver="gelsd").solution).square().sum())


@pytest.mark.parametrize("bias", [False, True])
def test_unreachable_share_is_what_dense_least_squares_leaves_of_all_elementary_updates(drawn, bias):
    x, m = drawn
    left = whole = 0.0
    for out in range(D):
        for into in range(K):  # updates with one entry each: their sum of dW^T dW is D times the identity
            update = torch.zeros(D, K, dtype=x.dtype)
            update[out, into] = 1.0
            shift = m @ update.T
            left += dense_edit_error(x, shift, bias)
            whole += float((shift - shift.mean(0) if bias else shift).square().sum())
    assert reach.unreachable_share(x, m, bias=bias) == pytest.approx(left / whole, rel=1e-9)


def test_a_read_that_holds_the_target_leaves_nothing_and_one_without_relation_everything():
    eye = torch.eye(8, dtype=torch.float64)
    assert reach.unreachable_share(eye[:, :5], eye[:, 1:3]) == pytest.approx(0, abs=1e-12)
    assert reach.unreachable_share(eye[:, :2], eye[:, 3:5]) == pytest.approx(1)
    assert reach.unreachable_share(eye[:, [0, 0]], eye[:, :2]) == pytest.approx(0.5)  # a read twice is read once


def test_canonical_correlations_are_cosines_of_principal_angles(drawn):
    scipy = pytest.importorskip("scipy.linalg")
    x, m = drawn
    correlations, variates = reach.variates_between(reach.orthonormal_basis(x), reach.orthonormal_basis(m))
    angles = scipy.subspace_angles(x.numpy(), m.numpy())
    expected = sorted(torch.tensor(angles).cos().tolist(), reverse=True)
    assert correlations[:P].tolist() == pytest.approx(expected, abs=1e-9)
    assert correlations[P:].tolist() == [0.0] * (K - P)
    torch.testing.assert_close(variates.T @ variates, torch.eye(K, dtype=x.dtype))


def test_one_decomposition_gives_the_ridge_prediction_of_every_penalty(drawn):
    x, m = drawn
    ridges = (0.0, 0.01, 1.0)
    found = reach.RidgeReads(x[:20]).predictions(m[:20], x[20:], ridges)
    for ridge, one in zip(ridges, found, strict=True):
        centred, scale = x[:20] - x[:20].mean(0), x[:20].std(0, correction=0)
        rows = torch.cat((centred / scale, (20 * ridge) ** 0.5 * torch.eye(P, dtype=x.dtype)))
        targets = torch.cat((m[:20] - m[:20].mean(0), torch.zeros(P, K, dtype=x.dtype)))
        weights = torch.linalg.lstsq(rows, targets).solution
        torch.testing.assert_close(one, (x[20:] - x[:20].mean(0)) / scale @ weights + m[:20].mean(0))


def test_effective_dimension_is_a_trace(drawn):
    _, m = drawn
    kernel, identity = m @ m.T, torch.eye(N, dtype=m.dtype)
    for level in (0.1, 3.0):
        expected = float((kernel @ torch.linalg.inv(kernel + level * identity)).trace())
        assert reach.effective_dimension(reach.token_spectrum(m), level) == pytest.approx(expected)
    assert reach.effective_dimension(reach.token_spectrum(m), 0.0) == pytest.approx(K)


def test_held_out_kernel_share_with_a_linear_kernel_is_the_held_out_share(drawn):
    x, m = drawn
    for ridge in (0.0, 0.1):
        weights = reach.RidgeReads(x[:20]).prediction(torch.eye(20, dtype=x.dtype), x[20:], ridge)
        found = reach.held_out_kernel_share(weights, m @ m.T)
        assert found == pytest.approx(reach.held_out_share(x[:20], m[:20], x[20:], m[20:], ridge), rel=1e-9)
    basis = reach.orthonormal_basis(x)
    assert reach.unreachable_kernel_share(basis, m @ m.T) == pytest.approx(reach.unreachable_share(x, m), rel=1e-9)


def test_a_token_whose_beginning_was_fitted_on_is_not_held_out():
    fitted, held_out = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 2, 9], [5, 5, 6], [4, 5, 6]])
    expected = torch.tensor([[False, False, True], [True, True, True], [False, False, False]])
    assert torch.equal(new_contexts(fitted, held_out), expected)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"])
def test_kernels_are_gram_matrices_of_dense_jacobians(name):
    check_kernel(name)


@pytest.mark.parametrize("name", ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"])
def test_kernels_of_the_mlp_are_gram_matrices_of_dense_jacobians(name):
    check_kernel(name)


def check_kernel(name: str):
    subject = random_subject(
        0, layers=1, hidden_size=12, intermediate_size=20, num_attention_heads=2, num_key_value_heads=1
    )
    with subject.ready():
        data = data_sets(subject)[0].halved().halved()
        module = subject.block.linear_maps()[name]
        directions = jacobians.output_directions(subject)[:2]
        ((found_name, kernel),) = jacobians._kernels(data, {name: module}, directions)
        assert found_name == name
        out, into = module.weight.shape
        columns = []
        for entry in range(0, out * into, 48):  # every entry of the weight by itself, forward mode
            basis = torch.eye(out * into, dtype=torch.float64)[entry : entry + 48].reshape(-1, out, into)
            columns.append(data.linear_shifts(module, basis) @ directions.T)
        jacobian = torch.cat(columns)  # entry row direction
        expected = torch.einsum("etj,esj->ts", jacobian, jacobian)
    torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_a_subject_of_other_weights_gets_other_numbers():
    subject = random_subject(3)
    with subject.ready():
        before = data_sets(subject)[0].reads("y")
        subject.block.mlp_write.weight.data.mul_(2.0)  # no version counter sees this
        after = data_sets(subject)[0].reads("y")
    assert not torch.allclose(before, after)
