"""Oracles reproduce the fine-tuned model where theory says so, and the linear one is the best linear one."""

from __future__ import annotations

import peft
import pytest
import torch

from steerscope.errors import InputError
from steerscope.models import true_float64
from steerscope.steering import SteeringConfig, get_steering_model
from steerscope.steering.oracles import Oracles, fitted_map, install
from tests.steering.cases import close, padded
from tests.tiny import LAYOUTS, VOCAB, tiny_model

EVERYWHERE = ("0.resid_post", "1.resid_post")


def batches(count: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        padded([torch.randint(3, VOCAB, (n,), generator=generator) for n in (9, 12, 7, 12)], "right")
        for _ in range(count)
    ]


def pair(family: str = "llama", size: float = 0.05):
    """A model and a copy whose blocks' matrices have moved."""
    base, tuned = tiny_model(family, torch.float64), tiny_model(family, torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.dim() == 2 and not any(word in name for word in ("embed", "wte", "wpe", "head")):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return base, tuned


@pytest.mark.parametrize("family", LAYOUTS)
def test_lockstep_and_one_step_are_the_fine_tuned_model_and_static_is_not(family):
    base, tuned = pair(family)
    oracles, data = Oracles(base, tuned), batches(1)
    with true_float64(base):
        found = {kind: oracles.kl(data, EVERYWHERE, kind) for kind in ("none", "static", "lockstep", "one_step")}
        again = oracles.kl(data, ("1.resid_post",), "lockstep")
    assert found["none"].kl > 1e-3
    assert found["none"].tokens == 40
    assert abs(found["lockstep"].kl) < 1e-12
    assert abs(found["one_step"].kl) < 1e-12
    assert abs(again.kl) < 1e-12  # the last layer alone is enough
    assert found["static"].kl > 1e-6
    # both layers' own changes do not make up for each other: one layer alone leaves the other's
    assert oracles.kl(data, ("0.resid_post",), "one_step").kl > 1e-4


def test_lora_is_the_fine_tuning():
    base = tiny_model("llama", torch.float64)
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["down_proj", "q_proj"])).double().eval()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    oracles, data = Oracles(wrapped), batches(1)
    assert oracles.kl(data, (), "none").kl > 1e-3
    assert abs(oracles.kl(data, EVERYWHERE, "lockstep").kl) < 1e-12
    maps = oracles.fit_linear(batches(), EVERYWHERE, rank=4)
    assert oracles.kl_of(batches(), maps).kl < oracles.kl(batches(), (), "none").kl


def test_the_fitted_map_is_the_best_of_its_rank():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(400, 6, dtype=torch.float64, generator=generator) * torch.tensor([3.0, 2, 1, 1, 1, 0.3]) + 2
    exact = torch.randn(6, 2, dtype=torch.float64, generator=generator) @ torch.randn(
        2, 6, dtype=torch.float64, generator=generator
    )
    shift = x @ exact.T + 1
    found = fitted_map(x, shift, rank=2, ridge=0.0)
    close(found.up @ found.down, exact)
    close(x @ found.down.T @ found.up.T + found.vector, shift)
    assert found.fitted == pytest.approx(1)
    # noise on top: no map of rank 1 found by descent is better, and rank 2 is
    noisy = shift + torch.randn(400, 6, dtype=torch.float64, generator=generator)
    best = fitted_map(x, noisy, rank=1, ridge=0.0)
    error = float((noisy - x @ best.down.T @ best.up.T - best.vector).square().sum())
    up, down, b = (
        (torch.randn(*shape, dtype=torch.float64, generator=generator) * 0.3).requires_grad_()
        for shape in [(6, 1), (1, 6), (6,)]
    )
    optimizer = torch.optim.LBFGS([up, down, b], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (noisy - x @ down.T @ up.T - b).square().sum()
        loss.backward()
        return loss

    descended = float(optimizer.step(closure).detach())
    descended = float((noisy - x @ down.T @ up.T - b).detach().square().sum())
    assert error <= descended * (1 + 1e-9)
    assert error == pytest.approx(descended, rel=1e-3)
    assert fitted_map(x, noisy, rank=2, ridge=0.0).fitted > best.fitted
    heavy = fitted_map(x, noisy, rank=2, ridge=100.0)
    assert float((heavy.up @ heavy.down).norm()) < 0.1 * float(exact.norm())


def test_linear_oracles_come_nearer_with_rank_and_install_as_an_adapter():
    base, tuned = pair()
    oracles, data = Oracles(base, tuned), batches()
    with true_float64(base):
        none = oracles.kl(data, (), "none").kl
        found = {rank: oracles.fit_linear(data, EVERYWHERE, rank) for rank in (1, 16)}
        divergences = {rank: oracles.kl_of(data, maps).kl for rank, maps in found.items()}
        assert divergences[16] < divergences[1] < none
        maps = found[1]
        assert list(map(str, maps)) == list(EVERYWHERE)
        steering = get_steering_model(base, SteeringConfig(EVERYWHERE, rank=1, dtype="float64")).eval()
        install(maps, steering)
        logits = steering(**data[0], use_cache=False).logits
        steering.unload()
        from steerscope.models import edited
        from steerscope.steering.oracles import _linear

        with edited(base, oracles.site_map, {site: _linear(m) for site, m in maps.items()}):
            close(logits, base(**data[0], use_cache=False).logits)


def test_supervised_tokens_alone_count():
    base, tuned = pair()
    (batch,) = batches(1)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 3:5] = 1
    assert Oracles(base, tuned).kl([{**batch, "labels": labels}], (), "none").tokens == 2
    with pytest.raises(InputError, match="no token to compare"):
        Oracles(base, tuned).kl([{**batch, "labels": torch.full_like(labels, -100)}], (), "none")


def test_refusals():
    base, tuned = pair()
    with pytest.raises(InputError, match="give a plain model and tuned="):
        Oracles(base)
    with pytest.raises(InputError, match="give a model's own copy"):
        Oracles(base, tiny_model("llama", num_hidden_layers=3))
    oracles = Oracles(base, tuned)
    with pytest.raises(InputError, match="unknown oracle 'lock'"):
        oracles.kl(batches(1), (), "lock")
    with pytest.raises(InputError, match=r"the change of a whole block; got '0\.mlp_out'"):
        oracles.kl(batches(1), ("0.mlp_out",), "one_step")
    with pytest.raises(InputError, match="got rank 0"):
        oracles.fit_linear(batches(1), EVERYWHERE, 0)
    maps = oracles.fit_linear(batches(1), ("0.resid_post",), 2)
    for config, message in [
        (SteeringConfig("resid_post", rank=2), "the maps are of"),
        (SteeringConfig("0.resid_post", rank=3), "a map of rank 2 needs a linear adapter of that rank"),
        (SteeringConfig("0.resid_post", rank=2, bias=False), "with bias=True"),
        (SteeringConfig("0.resid_post", "nonlinear", rank=2), "needs a linear adapter"),
    ]:
        steering = get_steering_model(base, config)
        with pytest.raises(InputError, match=message):
            install(maps, steering)
        steering.unload()
