"""Closed forms of the MLP against autodiff, finite differences and their own remainders, in float64."""

import math

import pytest
import torch
from transformers.activations import ACT2FN

from steerscope.equivalence import closed_forms as cf

# torch's own: forward derivatives load decompositions through torch.jit.script, deprecated in torch 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "tanh")
# d_ff == d hides a wrong orientation from every shape check, so it is always among the sizes.
SIZES = ((6, 10), (7, 7), (8, 5))


def draw(d: int, d_ff: int, seed: int = 0):
    """Return inputs, an input shift, gated weights with an update, plain weights with an update."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])

    def gated() -> cf.GatedWeights:
        return cf.GatedWeights(normal(d_ff, d) * 2, normal(d_ff, d) * 2, normal(d, d_ff))

    def plain() -> cf.PlainWeights:
        return cf.PlainWeights(normal(d_ff, d) * 2, normal(d_ff), normal(d, d_ff), normal(d))

    z, shift = normal(3, 4, d) * 2, normal(3, 4, d) * 2
    return z, shift, gated(), gated(), plain(), plain()


def moved(weights, update, t: float):
    return type(weights)(*(w + t * u for w, u in zip(weights, update, strict=True)))


def slope(remainder, sizes=(1e-2, 3e-3, 1e-3, 3e-4)) -> float:
    """Fit log |remainder(t)| against log t."""
    x = torch.tensor([math.log(t) for t in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(float(remainder(t).norm())) for t in sizes], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def autodiff_jacobian(mlp, z: torch.Tensor) -> torch.Tensor:
    """Stack the Jacobian of ``mlp`` at every token of ``z``."""
    flat = z.reshape(-1, z.shape[-1])
    rows = [torch.autograd.functional.jacobian(mlp, token) for token in flat]
    return torch.stack(rows).reshape(*z.shape, z.shape[-1])


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("d", "d_ff"), SIZES)
def test_input_jacobians_equal_autodiff(name, d, d_ff):
    phi = ACT2FN[name]
    z, shift, gated, _, plain, _ = draw(d, d_ff)
    for mlp, jacobian, first_order, weights in (
        (cf.gated_mlp, cf.gated_input_jacobian, cf.gated_input_shift, gated),
        (cf.plain_mlp, cf.plain_input_jacobian, cf.plain_input_shift, plain),
    ):
        found = jacobian(z, weights, phi)
        expected = autodiff_jacobian(lambda t, mlp=mlp, w=weights: mlp(t, w, phi), z)
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        applied = torch.einsum("...or,...r->...o", found, shift)
        torch.testing.assert_close(first_order(z, shift, weights, phi), applied, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("d", "d_ff"), SIZES)
def test_scaling_columns_instead_of_rows_is_another_matrix(d, d_ff):
    """The factorisation published in the authors' post scales columns: P6 says that is wrong by O(1)."""
    phi = ACT2FN["silu"]
    z, _, w, _, plain, _ = draw(d, d_ff)
    z = z[0, 0]
    a_g, a_u = w.gate @ z, w.up @ z
    along_gate, along_up = cf.activation_slope(phi, a_g) * a_u, phi(a_g)
    rows = w.down @ (torch.diag(along_gate) @ w.gate + torch.diag(along_up) @ w.up)
    right = cf.gated_input_jacobian(z, w, phi)
    torch.testing.assert_close(right, rows, rtol=1e-12, atol=1e-13)
    if d_ff != d:
        with pytest.raises(RuntimeError, match="size of tensor"):
            _ = along_gate * w.gate
        return
    columns = w.down @ (w.gate * along_gate + w.up * along_up)
    assert (columns - right).norm() > 0.3 * right.norm()
    plain_slope = cf.activation_slope(phi, plain.first @ z + plain.first_bias)
    plain_right = cf.plain_input_jacobian(z, plain, phi)
    plain_columns = plain.second @ (plain.first * plain_slope)
    assert (plain_columns - plain_right).norm() > 0.1 * plain_right.norm()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("d", "d_ff"), SIZES)
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_remainders_of_weight_updates(name, d, d_ff, kind):
    phi = ACT2FN[name]
    z, _, gated, gated_update, plain, plain_update = draw(d, d_ff, seed=1)
    if kind == "gated":
        mlp, w, dw = cf.gated_mlp, gated, gated_update
        first, second = cf.gated_weight_shift, cf.gated_weight_second_order
    else:
        mlp, w, dw = cf.plain_mlp, plain, plain_update
        first, second = cf.plain_weight_shift, cf.plain_weight_second_order
    start, linear, square = mlp(z, w, phi), first(z, w, dw, phi), second(z, w, dw, phi)
    assert linear.norm() > 0.1 * start.norm()  # not vacuous

    def shift(t):
        return mlp(z, moved(w, dw, t), phi) - start

    assert slope(lambda t: shift(t) - t * linear) == pytest.approx(2, abs=0.05)
    assert slope(lambda t: shift(t) - t * linear - t * t * square) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("d", "d_ff"), SIZES)
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_remainders_of_input_shifts(name, d, d_ff, kind):
    phi = ACT2FN[name]
    z, dz, gated, _, plain, _ = draw(d, d_ff, seed=2)
    if kind == "gated":
        mlp, w, first, second = cf.gated_mlp, gated, cf.gated_input_shift, cf.gated_input_second_order
    else:
        mlp, w, first, second = cf.plain_mlp, plain, cf.plain_input_shift, cf.plain_input_second_order
    start, linear, square = mlp(z, w, phi), first(z, dz, w, phi), second(z, dz, w, phi)
    assert linear.norm() > 0.1 * start.norm()

    def shift(t):
        return mlp(z + t * dz, w, phi) - start

    assert slope(lambda t: shift(t) - t * linear) == pytest.approx(2, abs=0.05)
    assert slope(lambda t: shift(t) - t * linear - t * t * square) == pytest.approx(3, abs=0.05)


def test_forgetting_the_cross_term_leaves_slope_two():
    """P5's pitfall: without the term of the down projection times the rest, the remainder stays second order."""
    phi = ACT2FN["silu"]
    z, _, w, dw, _, _ = draw(6, 10, seed=1)
    no_down = cf.GatedWeights(dw.gate, dw.up, torch.zeros_like(dw.down))
    start, linear = cf.gated_mlp(z, w, phi), cf.gated_weight_shift(z, w, dw, phi)
    without = cf.gated_weight_second_order(z, w, no_down, phi)
    found = slope(lambda t: cf.gated_mlp(z, moved(w, dw, t), phi) - start - t * linear - t * t * without)
    assert found == pytest.approx(2, abs=0.05)


def test_curvature_of_another_gelu_leaves_slope_two():
    """P3's pitfall: the second derivatives of the two GELUs differ."""
    z, dz, w, _, _, _ = draw(6, 10, seed=3)
    phi, other = ACT2FN["gelu"], ACT2FN["gelu_pytorch_tanh"]
    start, linear = cf.gated_mlp(z, w, phi), cf.gated_input_shift(z, dz, w, phi)
    small = (3e-3, 1e-3, 3e-4, 1e-4)  # the two differ by 1e-3, so the wrong term shows late
    for curve, expected in ((phi, 3), (other, 2)):
        square = cf.gated_input_second_order(z, dz, w, curve)
        found = slope(lambda t, s=square: cf.gated_mlp(z + t * dz, w, phi) - start - t * linear - t * t * s, small)
        assert found == pytest.approx(expected, abs=0.25)


def test_bilinear_mlp_ends_at_second_order():
    """P4: with phi the identity the remainder is exactly W_d[(W_g D)*(W_u D)], at any size."""
    z, dz, w, _, _, _ = draw(6, 10, seed=4)
    identity = torch.nn.Identity()
    exact = cf.gated_mlp(z + 3 * dz, w, identity) - cf.gated_mlp(z, w, identity)
    square = ((dz @ w.gate.T) * (dz @ w.up.T)) @ w.down.T
    torch.testing.assert_close(cf.gated_input_second_order(z, dz, w, identity), square, rtol=1e-13, atol=1e-14)
    linear = cf.gated_input_shift(z, dz, w, identity)
    torch.testing.assert_close(exact, 3 * linear + 9 * square, rtol=1e-13, atol=1e-13)


def test_relu_kink_breaks_the_order():
    """The assumption of every expansion here: across a kink the remainder is of first order."""
    w = cf.PlainWeights(*(torch.ones(*s, dtype=torch.float64) for s in ((1, 1), (1,), (1, 1), (1,))))
    z, dz = torch.tensor([-1.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    start, linear = cf.plain_mlp(z, w, torch.relu), cf.plain_input_shift(z, dz, w, torch.relu)
    found = slope(lambda t: cf.plain_mlp(z + t * dz, w, torch.relu) - start - t * linear)
    assert found == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", [*ACTIVATIONS, "relu", "quick_gelu"])
def test_activation_derivatives_against_differences(name):
    phi = ACT2FN[name]
    x = torch.linspace(-3, 3, 24, dtype=torch.float64)  # no entry at ReLU's kink
    step = 1e-5
    first = (phi(x + step) - phi(x - step)) / (2 * step)
    torch.testing.assert_close(cf.activation_slope(phi, x), first, rtol=1e-8, atol=1e-9)
    step = 1e-4
    second = (phi(x + step) - 2 * phi(x) + phi(x - step)) / step**2
    torch.testing.assert_close(cf.activation_curvature(phi, x), second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_curvature_is_the_same_where_gradients_are_off(name):
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    expected = cf.activation_curvature(ACT2FN[name], x)
    with torch.no_grad():
        assert torch.equal(cf.activation_curvature(ACT2FN[name], x), expected)
