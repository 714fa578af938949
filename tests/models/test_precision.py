"""``true_float64``: remainders stay of second order down to 1e-6, which they do not without it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from steerscope.errors import InputError
from steerscope.models import forward_differentiable_attention, true_float64
from tests.tiny import FAMILIES, VOCAB, tiny_model

# torch's own: forward derivatives load decompositions through torch.jit.script, deprecated in torch 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)


def local_slopes(function, start: Tensor, direction: Tensor, linear: Tensor) -> list[float]:
    """Return the slope of log |f(x + t d) - f(x) - t f'(x) d| between every two neighbouring steps."""
    origin = function(start)
    sizes = [float((function(start + t * direction) - origin - t * linear).norm()) for t in STEPS]
    return [math.log10(large / small) for large, small in pairwise(sizes)]


def rms_norm_case():
    generator = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(16).double()
    x, dx = (torch.randn(3, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    return norm, x, dx


@torch.no_grad()
def test_rms_norm_keeps_second_order_inside():
    norm, x, dx = rms_norm_case()
    with true_float64(norm):
        linear = torch.func.jvp(norm, (x,), (dx,))[1]
        assert local_slopes(norm, x, dx, linear) == pytest.approx([2, 2, 2], abs=0.05)


@torch.no_grad()
def test_rms_norm_breaks_down_outside():
    """Known limit: transformers' RMSNorm computes in float32, so the remainder is rounding below 1e-4."""
    norm, x, dx = rms_norm_case()
    with true_float64(norm):
        linear = torch.func.jvp(norm, (x,), (dx,))[1]
    slopes = local_slopes(norm, x, dx, linear)
    assert slopes[1] < 1.5
    assert slopes[2] < 0.7


def logits_case(family: str):
    """Return logits as a function of one weight, that weight, and an update of its size."""
    model = tiny_model(family, torch.float64)
    names = [n for n, p in model.named_parameters() if ".0." in n and p.dim() == 2]
    name = next(n for n in names if any(k in n for k in ("v_proj", "qkv", "query_key_value", "c_attn")))
    weight = model.get_parameter(name).detach().clone()
    update = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    update *= weight.norm() / update.norm()
    ids = torch.randint(3, VOCAB, (2, 5), generator=torch.Generator().manual_seed(2))

    def logits(value: Tensor) -> Tensor:
        return torch.func.functional_call(model, {name: value}, kwargs={"input_ids": ids, "use_cache": False}).logits

    return model, logits, weight, update


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_keep_second_order_inside(family):
    model, logits, weight, update = logits_case(family)
    with torch.no_grad(), true_float64(model), forward_differentiable_attention(model):
        linear = torch.func.jvp(logits, (weight,), (update,))[1]
        assert linear.norm() > 1e-2 * logits(weight).norm()
        assert local_slopes(logits, weight, update, linear) == pytest.approx([2, 2, 2], abs=0.1)


@torch.no_grad()
def test_logits_break_down_outside():
    """Known limit: without the context a float64 Llama is a float32 model in its norms."""
    model, logits, weight, update = logits_case("llama")
    with forward_differentiable_attention(model):
        with true_float64(model):
            linear = torch.func.jvp(logits, (weight,), (update,))[1]
        slopes = local_slopes(logits, weight, update, linear)
    assert slopes[2] < 1


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.float(),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x.to(torch.float32),
        lambda x: x.to(dtype=torch.float32),
        lambda x: x.to("cpu", torch.float32),
        lambda x: x.to(device="cpu", dtype=torch.float32),
        lambda x: x.type(torch.float32),
        lambda x: torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),
        lambda x: torch.softmax(x, -1, dtype=torch.float32),
        lambda x: x.mean(dtype=torch.float32),
        lambda x: torch.ones_like(x, dtype=torch.float32),
    ],
)
def test_casts_from_float64_are_lifted_inside_only(cast):
    x = torch.randn(3, dtype=torch.float64)
    model = torch.nn.Linear(2, 2, dtype=torch.float64)
    with true_float64(model):
        assert cast(x).dtype is torch.float64
        assert cast(x.float()).dtype is torch.float64
    assert cast(x).dtype is not torch.float64


def test_other_tensors_are_cast_as_asked():
    model = torch.nn.Linear(2, 2, dtype=torch.float64)
    with true_float64(model):
        assert torch.arange(3).float().dtype is torch.float32
        assert torch.zeros(3, dtype=torch.float32).to(torch.bfloat16).dtype is torch.bfloat16
        assert torch.zeros(3, dtype=torch.float64).to(torch.int64).dtype is torch.int64
        assert torch.zeros(3, dtype=torch.float32).double().dtype is torch.float64


@torch.no_grad()
def test_the_context_changes_logits_by_rounding_only_and_ends():
    model = tiny_model("llama", torch.float64)
    ids = torch.tensor([[3, 4, 5]])
    outside = model(input_ids=ids).logits
    with true_float64(model):
        inside = model(input_ids=ids).logits
    assert not torch.equal(inside, outside)
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(input_ids=ids).logits, outside)


def test_other_models_are_refused_by_the_name_of_a_weight():
    model = tiny_model("llama", torch.float64)
    model.model.layers[1].mlp.up_proj.float()
    complaint = r"'model\.layers\.1\.mlp\.up_proj\.weight' is torch\.float32\. Call model\.double\(\)"
    with pytest.raises(InputError, match=complaint), true_float64(model):
        pass
