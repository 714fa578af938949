"""Derivatives that go back through linear maps in bfloat16: close to the others, and only where that is certain."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from steerscope import Example, RankOptions, rank_sites, wrap_model
from steerscope.analysis.capture import capture as capturing
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.capture.slices import capture_slice, joined
from steerscope.analysis.capture.way_back import RoundedBack, rounded_weight, rounds_back
from steerscope.analysis.data.encoding import encode_for
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.equivalence import products
from steerscope.errors import UnsupportedModelError
from tests.analysis.test_slices import examples
from tests.cli.runs import question
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(autouse=True)
def fast_bfloat16(monkeypatch):
    """Any processor multiplies bfloat16; here it is taken to be fast at it."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: True)


def captured(layout: str, plan: SketchPlan, dtype: torch.dtype = torch.float32) -> Features:
    loaded = wrap_model(tiny_model(layout).to(dtype), tiny_tokenizer())
    encoded = encode_for(loaded, examples("one token"))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return capturing.capture(loaded, encoded, make_probes(encoded, 2, 64, 0, wide), plan, seed=0, batch_size=4)


def kernels(found: Features) -> dict[str, torch.Tensor]:
    rows = Rows.of(found)
    of = {str(site): Kernel.of([feature], found, rows).probe for site, feature in found.linear.items()}
    return of | {"weights": Kernel.of(found.weights, found, rows).probe}


@pytest.mark.parametrize("layout", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_rounded_derivatives_are_the_others_but_for_their_last_digits(layout):
    rounded, plain = (captured(layout, SketchPlan(False, 4, 8, 24, rounded_back=back)) for back in (True, False))
    assert plain.rounding is None
    assert rounded.rounding is not None
    assert 1e-5 < rounded.rounding < 0.02
    assert torch.equal(rounded.loss, plain.loss)
    assert torch.equal(rounded.residual, plain.residual)
    pairs = list(zip(kernels(rounded).values(), kernels(plain).values(), strict=True))
    assert all(float((one - other).norm()) <= 0.02 * float(other.norm()) for one, other in pairs)
    assert any(not torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_model_that_rounding_moves_too_far_is_captured_without(layout, monkeypatch):
    monkeypatch.setattr(capturing, "LARGEST_ERROR", 1e-9)
    rounded, plain = (captured(layout, SketchPlan(False, 4, 8, 24, rounded_back=back)) for back in (True, False))
    assert rounded.rounding is None
    assert all(torch.equal(rounded.linear[site], feature) for site, feature in plain.linear.items())


@pytest.mark.parametrize(
    ("plan", "dtype"), [(SketchPlan(True), torch.float32), (SketchPlan(False, 4, 8, 24), torch.float64)]
)
def test_exact_features_and_float64_are_never_rounded(plan, dtype):
    assert captured("llama", plan, dtype).rounding is None


@pytest.mark.parametrize("module", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["Linear", "Conv1D"])
def test_the_way_back_is_the_weight_and_its_output_may_change_in_place(module):
    module.requires_grad_(False)
    read = torch.randn(2, 3, 6, requires_grad=True)
    seen: list[torch.Tensor] = []

    def few_digits(grad: torch.Tensor) -> torch.Tensor:
        seen.append(grad)
        return grad.flatten(0, 1).bfloat16()

    (expected,) = torch.autograd.grad((3 * module(read)).sin().sum(), read)
    output = RoundedBack.apply(read, module(read).detach(), rounded_weight(module, torch.float32), few_digits)
    (found,) = torch.autograd.grad(output.mul_(3).sin().sum(), read)
    assert torch.allclose(found, expected, atol=0.02 * float(expected.norm()))
    assert torch.allclose(seen[0], 3 * (3 * module(read)).cos())


def test_maps_that_may_do_more_are_left_to_autograd():
    def hooked(map_: nn.Module) -> nn.Module:
        map_.register_forward_hook(lambda module, args, output: 2 * output)
        return map_

    def replaced(map_: nn.Module) -> nn.Module:
        map_.forward = lambda read: nn.Linear.forward(map_, 2 * read)
        return map_

    class Scaled(nn.Linear):
        def forward(self, read: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(read)

    adapted = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    (wrapped, *_) = (module for name, module in adapted.named_modules() if name.endswith("q_proj"))
    others = [
        hooked(nn.Linear(4, 4)),
        replaced(nn.Linear(4, 4)),
        Scaled(4, 4),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Linear(4, 4, dtype=torch.float64),
        nn.Linear(4, 4, device="meta"),
        wrapped,
    ]
    home = torch.device("cpu")
    assert rounds_back(nn.Linear(4, 4), torch.float32, home)
    assert [rounds_back(map_, torch.float32, home) for map_ in others] == [False] * len(others)


@pytest.mark.parametrize("plan", [SketchPlan(True), SketchPlan(False, 4, 8, 24)], ids=["exact", "sketched"])
def test_a_map_that_blocks_share_is_refused(plan):
    model = tiny_model("llama")
    model.model.layers[1].self_attn.q_proj = model.model.layers[0].self_attn.q_proj
    loaded = wrap_model(model, tiny_tokenizer())
    encoded = encode_for(loaded, examples("one token"))
    with pytest.raises(UnsupportedModelError, match=r"of block 0 and .* of block 1 are one linear map"):
        capturing.capture(loaded, encoded, make_probes(encoded, 2, 64, 0, torch.float32), plan, seed=0, batch_size=4)


@pytest.mark.parametrize("threads", [2, 3])
def test_backward_passes_side_by_side_are_those_one_after_another(threads):
    plan = SketchPlan(False, 4, 8, 24)
    try:
        torch.set_num_threads(threads)
        several = captured("llama", plan)
    finally:
        torch.set_num_threads(1)
    one = captured("llama", plan)
    pairs = zip(kernels(several).values(), kernels(one).values(), strict=True)
    assert all(torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(second.norm())) for first, second in pairs)


def test_slices_say_the_largest_rounding_of_any():
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    encoded = encode_for(loaded, examples("one token"))
    probes, found = make_probes(encoded, 2, 64, 0, torch.float32), []
    for index, back in enumerate((False, True)):
        plan = SketchPlan(False, 4, 8, 24, rounded_back=back)
        found.append(capture_slice(loaded, encoded, probes, plan, index=index, count=2, seed=0, batch_size=4))
    assert found[0].features.rounding is None
    assert joined(found).rounding == found[1].features.rounding > 0


@pytest.mark.parametrize("score", ["learnable_share", "predicted_loss"])
def test_a_small_ridge_meets_no_rounded_kernel(score):
    """Half precision would make kernels of many rows indefinite by more than such a ridge."""
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    prompts = [question(i) + " 7" * (i * 5 % 4) for i in range(96)]
    choices = tuple(f" {i}" for i in range(10))
    found = [Example(prompt, choices[i % 10], choices, i % 10) for i, prompt in enumerate(prompts)]
    options = RankOptions(exact=False, ridge=0.003, score=score)
    assert len(rank_sites(loaded, found, options).sites) > 10
