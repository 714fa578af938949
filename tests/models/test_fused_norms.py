"""Norms of a frozen model in fewer passes over memory: the module's numbers and gradients, or the module itself."""

from __future__ import annotations

import pytest
import torch

from steerscope import wrap_model
from steerscope.models.compat import checkpoint_activations
from steerscope.models.fused_norms import FusedNorms, _RootMeanSquareNorm
from steerscope.models.precision import true_float64
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

LAYER_NORMS = ("gpt2", "opt", "gpt_neox", "gpt_neox_sequential", "phi")


def frozen(family, dtype=torch.float32):
    model = wrap_model(tiny_model(family, dtype), tiny_tokenizer()).model
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
    return model


def results(model):
    """Logits, and the gradient for what the blocks read."""
    read = model.get_input_embeddings()(torch.arange(3, 17).reshape(2, 7)).requires_grad_()
    logits = model(inputs_embeds=read).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), read)
    return logits.detach(), gradient


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_and_gradients_are_those_of_the_model(family):
    model = frozen(family, torch.float64)
    with true_float64(model):
        norms = FusedNorms(model)
        own = [module for module in model.modules() if "RMSNorm" in type(module).__name__]
        assert len(norms) == (0 if family in LAYER_NORMS else len(own))
        expected = results(model)
        with norms.acting():
            assert sum("forward" in vars(module) for module in own) == len(norms)
            found = results(model)
    assert not any("forward" in vars(module) for module in own)
    for value, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(value, whole, rtol=0, atol=1e-11 * float(whole.abs().max()))


def test_the_gradient_is_that_of_finite_differences():
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.tensor([1.0, 2.0, -0.5, 0.3, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: _RootMeanSquareNorm.apply(one, weight, 0.1), (x,))


def test_norms_that_are_trained_are_left_alone():
    model = frozen("llama")
    norms = FusedNorms(model)
    trained = model.model.norm
    trained.weight.requires_grad_()
    with norms.acting():
        assert "forward" not in vars(trained)
        model(torch.arange(3, 10)[None]).logits.sum().backward()
    assert float(trained.weight.grad.abs().max()) > 0


class _WithoutRoot(torch.nn.Module):
    """Looks like a root mean square norm, and is none."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(8), requires_grad=False), 1e-5

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class _OutsideRoot(_WithoutRoot):
    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps) * self.weight


@pytest.mark.parametrize("other", [_WithoutRoot, _OutsideRoot])
def test_what_computes_something_else_is_left_alone(other):
    assert len(FusedNorms(other())) == 0


def test_nothing_is_fused_under_gradient_checkpointing():
    model = frozen("llama")
    checkpoint_activations(model)
    assert len(FusedNorms(model)) == 0


class Gated(torch.nn.Module):
    """As of Mamba's blocks: a gate that may be left out."""

    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = torch.nn.Parameter(torch.rand(8)), 1e-6

    def forward(self, hidden_states, gate=None):
        x = hidden_states if gate is None else hidden_states * gate
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


class Odd(Gated):
    """Raises what nobody expects."""

    def forward(self, hidden_states):
        return hidden_states.cache.to(self.weight)


class Named(Gated):
    """Takes one tensor, under a name of its own."""

    def forward(self, hidden):
        return super().forward(hidden)


@pytest.mark.parametrize(("module", "number"), [(Gated, 0), (Odd, 0), (Named, 1)])
def test_modules_that_take_or_raise_something_else_are_left_alone(module, number):
    norm = module().requires_grad_(False)
    norms = FusedNorms(torch.nn.Sequential(norm))
    assert len(norms) == number
    if number:
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        expected = norm(x)
        with norms.acting():
            assert "forward" in vars(norm)
            torch.testing.assert_close(norm(hidden=x), expected)
