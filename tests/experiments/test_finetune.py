"""A short fine-tuning: it learns, its first step is AdamW's, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch

from steerscope import Example, InputError, get_task
from steerscope.analysis.theory.common import weight_names
from steerscope.experiments.finetune import mean_loss, short_finetune
from steerscope.models.changed_weights import with_update
from tests.analysis.theory.cases import assert_same_bits, bits, loaded
from tests.cli.runs import CHOICES, question

COMPLETIONS = [Example(question(i), f" {i % 3 + 1} {i % 2}") for i in range(10)]
ONE_TOKEN = [Example(question(i), CHOICES[i % 3], tuple(CHOICES), i % 3) for i in range(10)]
LONGER = [Example(question(i), f" {i % 3} 5", tuple(f" {c} 5" for c in range(3)), i % 3) for i in range(10)]


@pytest.mark.parametrize("examples", [COMPLETIONS, ONE_TOKEN, LONGER], ids=["completions", "choices", "longer"])
def test_loss_falls_and_the_model_stays(examples):
    model = loaded(dtype=torch.float32)
    before, losses = bits(model), []
    options = {"steps": 12, "learning_rate": 5e-3, "batch_size": 10}
    update = short_finetune(model, examples, **options, progress=lambda s, n, loss: losses.append((s, n, loss)))
    assert_same_bits(model, before)
    assert [(s, n) for s, n, _ in losses] == [(i + 1, 12) for i in range(12)]
    assert losses[-1][2] < 0.8 * losses[0][2]
    assert set(update) == set(weight_names(model).values())
    assert all(float(change.norm()) > 0 for change in update.values())


def test_first_step_is_the_sign_of_the_gradient_of_the_loss():
    model = loaded()
    update = short_finetune(model, ONE_TOKEN, steps=1, learning_rate=1e-3, batch_size=10)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = dict(model.model.named_parameters())[name]
    weight.requires_grad_(True)
    loss = torch.zeros((), dtype=torch.float64)
    for example in ONE_TOKEN:  # one by one, without padding
        ids = model.tokenizer(example.prompt, return_tensors="pt")["input_ids"]
        choices = [model.tokenizer.convert_tokens_to_ids(choice.strip()) for choice in CHOICES]
        scores = model.model(input_ids=ids).logits[0, -1, choices]
        loss = loss - scores.log_softmax(-1)[example.answer_index]
    gradient = torch.autograd.grad(loss, weight)[0]
    weight.requires_grad_(False)
    clear = gradient.abs() > 1e-4 * gradient.abs().max()
    torch.testing.assert_close(update[name][clear], -1e-3 * gradient.sign()[clear], rtol=1e-3, atol=1e-8)


def test_mean_loss_is_that_of_the_steps_and_falls():
    model, losses = loaded(dtype=torch.float32), []
    update = short_finetune(
        model, LONGER, steps=6, learning_rate=5e-3, batch_size=10, progress=lambda s, n, loss: losses.append(loss)
    )
    before = mean_loss(model, LONGER, batch_size=3)
    assert before == pytest.approx(losses[0], rel=1e-4)
    with with_update(model, update):
        assert mean_loss(model, LONGER) < 0.9 * before
    assert mean_loss(model, LONGER) == pytest.approx(before, rel=1e-5)


def test_same_seed_same_update():
    model = loaded(dtype=torch.float32)
    first, second, other = (short_finetune(model, COMPLETIONS, steps=2, batch_size=3, seed=seed) for seed in (0, 0, 1))
    name = next(iter(first))
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


def test_interruption_leaves_the_model_as_it_was():
    model = loaded(dtype=torch.float32)
    before = bits(model)

    def stop(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short_finetune(model, COMPLETIONS, progress=stop)
    assert_same_bits(model, before)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"steps": 0}, "steps"), ({"learning_rate": 0.0}, "learning_rate"), ({"batch_size": -1}, "batch_size")],
)
def test_bad_numbers(options, words):
    with pytest.raises(InputError, match=words):
        short_finetune(loaded(dtype=torch.float32), COMPLETIONS, **options)


def test_other_refusals():
    with pytest.raises(InputError, match="float32"):
        short_finetune(loaded(dtype=torch.float16), COMPLETIONS)
    with pytest.raises(InputError, match="no examples"):
        short_finetune(loaded(dtype=torch.float32), [])
    with pytest.raises(InputError, match="smaller learning rate"):
        short_finetune(loaded(dtype=torch.float32), COMPLETIONS, steps=8, learning_rate=1e30)


def test_listops_is_what_the_command_trains_on():
    update = short_finetune(loaded(dtype=torch.float32), get_task("listops").split("train", 8, 0), steps=1)
    assert update
