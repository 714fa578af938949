"""One run: the edit starts as none, learns, and leaves the model as it was."""

import math

import pytest
import torch

from steerscope.analysis.capture import read_scales
from steerscope.analysis.encoding import encode
from steerscope.analysis.outputs import batch_outputs
from steerscope.experiments.validation.prefix import PrefixCache
from steerscope.experiments.validation.training import (
    TrainSettings,
    WeightMethod,
    _no_probes,
    applied,
    has_diverged,
    judge_edits,
    train_edits,
    train_weights,
    training_order,
)
from steerscope.models.load import digest_of_parameters
from tests.experiments.validation.test_prefix import examples, loaded_with

SETTINGS = TrainSettings(rank=2, steps=12, batch_size=4)


def setting(family="llama", n=24):
    loaded = loaded_with(family)
    encoded = encode(examples(n), loaded.tokenizer, 64)
    found = read_scales(loaded, encoded, batch_size=8, max_examples=n)
    scales = {site: float(scale.pow(2).mean().sqrt()) for site, scale in found.items()}
    return loaded, PrefixCache(loaded, encoded), scales


@pytest.mark.parametrize("name", ["1.attn_heads", "2.mlp_hidden", "3.resid_post"])
def test_an_edit_learns_and_the_model_stays(name):
    loaded, data, scales = setting()
    digest = digest_of_parameters(loaded.model)
    site = loaded.site_map.resolve(name)
    before = judge_edits(loaded, {}, {}, data, 8)
    run = train_edits(loaded, [site], scales, data, SETTINGS, learning_rate=0.03, seed=0)
    after = judge_edits(loaded, run.weights, scales, data, 8)
    assert after.loss < before.loss - 0.01
    assert len(run.train_losses) == SETTINGS.steps
    assert not run.diverged
    assert digest_of_parameters(loaded.model) == digest
    assert judge_edits(loaded, {}, {}, data, 8).losses == pytest.approx(before.losses, abs=1e-5)


def test_an_edit_starts_as_none():
    loaded, data, scales = setting()
    site = loaded.site_map.resolve("2.resid_post")
    run = train_edits(loaded, [site], scales, data, TrainSettings(2, 1, 4), learning_rate=0.0, seed=0)
    assert float(run.weights["2.resid_post.U"].abs().max()) == 0
    assert judge_edits(loaded, run.weights, scales, data, 8).losses == pytest.approx(
        judge_edits(loaded, {}, {}, data, 8).losses, abs=1e-5
    )


def test_one_step_is_the_step_adam_makes_on_the_whole_model():
    loaded, data, scales = setting()
    site = loaded.site_map.resolve("2.mlp_out")
    settings = TrainSettings(2, 1, 4)
    run = train_edits(loaded, [site], scales, data, settings, learning_rate=0.1, seed=5)
    start = train_edits(loaded, [site], scales, data, settings, learning_rate=0.0, seed=5).weights
    weights = {name: value.clone().requires_grad_() for name, value in start.items()}
    whole = PrefixCache(loaded, data.encoded)  # from the embeddings, nothing kept
    (chosen,) = training_order(data, settings, 5)
    with applied(loaded, weights, scales):
        outputs = batch_outputs(loaded.model, whole.batch(chosen), data.encoded, _no_probes(data))
        (-outputs.log_likelihood.mean()).backward()
    gradient = weights["2.mlp_out.U"].grad
    moved = run.weights["2.mlp_out.U"]
    clear = gradient.abs() > 1e-4  # Adam's first step is the rate times the gradient's sign
    assert clear.any()
    torch.testing.assert_close(moved[clear], -0.1 * gradient[clear].sign(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_learn_on_a_copy(way, family):
    loaded, data, _ = setting(family)
    digest = digest_of_parameters(loaded.model)
    before = judge_edits(loaded, {}, {}, data, 8)
    rate = 0.01 if way == "full" else 0.03
    run, judge = train_weights(loaded, WeightMethod(way), data, SETTINGS, learning_rate=rate, seed=0)
    assert judge(data, 8).loss < before.loss - 0.01
    assert not run.weights
    assert digest_of_parameters(loaded.model) == digest


def test_every_example_is_seen_once_per_epoch_and_the_order_is_the_seeds():
    _, data, _ = setting(n=10)
    steps = list(training_order(data, TrainSettings(2, 5, 4), 3))
    assert [len(s) for s in steps[:3]].count(2) == 1
    assert sorted(i for s in steps[:3] for i in s) == list(range(10))
    assert len(steps) == 5
    assert steps == list(training_order(data, TrainSettings(2, 5, 4), 3))
    assert steps != list(training_order(data, TrainSettings(2, 5, 4), 4))


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, 1.5, 1.2, 1.0], False),
        ([0.2, 2.5, 0.3, 0.2], False),  # a batch of long prompts in the middle
        ([2.0, 3.0, 6.0, 9.0], True),
        ([2.0, 1.0, math.nan], True),
        ([2.0, math.inf], True),
    ],
)
def test_divergence(losses, diverged):
    assert has_diverged(losses) is diverged


def test_the_rate_rises_and_falls():
    settings = TrainSettings(steps=20, warmup=0.1)
    factors = [settings.factor(step) for step in range(20)]
    assert factors[0] == 0.5
    assert max(factors) == factors[1] == 1.0
    assert factors[1:] == sorted(factors[1:], reverse=True)
    assert 0 < factors[-1] < 0.1
