"""Logits of some tokens: one product over hidden states that lie side by side, and nothing else changed."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from steerscope import SteeringConfig, get_steering_model
from steerscope.experiments.evaluation.generation import generate
from steerscope.experiments.training.train import train
from steerscope.models.head import contiguous_head
from tests.byte_models import byte_model, byte_tokenizer
from tests.experiments.training.tiny_runs import make_place, options, task_of

IDS = torch.randint(3, 200, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def seen(monkeypatch) -> list[bool]:
    """Whether the input was contiguous, of every product with the vocabulary for several rows."""
    found: list[bool] = []
    usual = nn.Linear.forward

    def forward(self, x):
        if self.out_features == byte_model().config.vocab_size and x.ndim == 3 and len(x) > 1:
            found.append(x.is_contiguous())
        return usual(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    return found


WRAPPED = {
    "bare": lambda: byte_model(),
    "tied": lambda: byte_model(tie_word_embeddings=True),
    "lora": lambda: peft.get_peft_model(byte_model(), peft.LoraConfig(target_modules=["q_proj"])),
    "steered": lambda: get_steering_model(byte_model(), SteeringConfig(sites=("resid_post",), rank=2)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_inside_the_product_is_one_and_the_logits_are_the_same(seen, name):
    model = WRAPPED[name]()
    before = model(IDS, logits_to_keep=2).logits
    with contiguous_head(model):
        inside = model(IDS, logits_to_keep=2).logits
    after = model(IDS, logits_to_keep=2).logits
    assert seen == [False, True, False]  # the hook is gone again
    assert inside.shape == (3, 2, model.config.vocab_size)
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(after, before)


def test_the_hook_is_gone_after_an_error_and_others_stay():
    model = byte_model()
    head = model.get_output_embeddings()
    own = head.register_forward_pre_hook(lambda module, args: None)

    def fail():
        with contiguous_head(model):
            assert len(head._forward_pre_hooks) == 2
            head(torch.zeros(1, 1, 1))

    with pytest.raises(RuntimeError, match="shapes"):
        fail()
    assert list(head._forward_pre_hooks) == [own.id]


def test_what_has_no_head_is_left_as_it_is():
    with contiguous_head(nn.Linear(2, 2)), contiguous_head(byte_model().model):
        pass


def test_training_and_generation_use_it(seen, tmp_path):
    place = make_place(tmp_path)
    train(options(place, test_examples=2), task_of(place), tmp_path / "run")
    assert seen
    assert all(seen)
    seen.clear()
    generate(byte_model(), byte_tokenizer(), ["one", "another"], max_new_tokens=2, batch_size=2)
    assert all(seen)
