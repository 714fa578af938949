"""Trainers that put a head of their own on the model: TRL's SFTTrainer, and a function built as its is."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import nn

from tests.steering.cases import close, hooks_of, padded, prompts, steered

BATCH = padded(prompts(), "right")
LABELS = BATCH["input_ids"].masked_fill(BATCH["attention_mask"] == 0, -100)
LABELS[:, :2] = -100


def put_on(model: nn.Module) -> None:
    """Replace ``forward`` by one that scores labels from the decoder's hidden states when asked to, as TRL does."""
    original = model.forward

    def fused(self, *args, fused_lm_head=False, labels=None, **kwargs):
        if not fused_lm_head:
            return original(*args, labels=labels, **kwargs)
        states = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
        scores = nn.functional.linear(states, self.get_output_embeddings().weight)
        return nn.functional.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten())

    model.forward = MethodType(fused, model)


@pytest.mark.parametrize("positions", ["all", "completion", "last"])
def test_a_head_put_on_the_model_sees_the_edits_and_the_labels(positions):
    model = steered("linear", positions=positions)
    expected = model(**BATCH, labels=LABELS).loss
    expected.backward()
    grads = [p.grad.clone() for p in model.edits.parameters()]
    model.zero_grad()
    put_on(model)
    found = model(**BATCH, labels=LABELS, fused_lm_head=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)  # transformers' loss is in float32
    found.backward()
    for grad, p in zip(grads, model.edits.parameters(), strict=True):
        close(p.grad, grad, 1e-5)
    with torch.no_grad():
        assert torch.equal(model(**BATCH, labels=LABELS).loss, expected)  # without the head, as before
    ids = BATCH["input_ids"][:1]
    written = model.generate(ids, max_new_tokens=3, pad_token_id=2)
    assert torch.equal(written, steered("linear", positions=positions).generate(ids, max_new_tokens=3, pad_token_id=2))
    base = model.unload()
    assert "forward" not in vars(base)
    assert hooks_of(base) == 0


def test_another_forward_is_set_as_it_is():
    model = steered("vector")
    model.forward = MethodType(lambda self, **inputs: "mine", model)
    assert model(**BATCH) == "mine"


def test_sft_trainer(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from steerscope.steering import SteeringModel
    from tests.tiny import tiny_tokenizer

    model = steered("linear", positions="completion", dtype="float32").float()
    rows = [{"prompt": "[ MAX 3 5 ] =", "completion": " 5"}, {"prompt": "[ MIN 2 9 ] =", "completion": " 2"}] * 4
    settings = {
        "max_steps": 2,
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(output_dir=str(tmp_path), learning_rate=0.05, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    before = [p.detach().clone() for p in model.edits.parameters()]
    trainer.train()
    assert all(not torch.equal(p, old) for p, old in zip(model.edits.parameters(), before, strict=True))
    expected = {name: value.clone() for name, value in model.steering_tensors().items()}
    again = SteeringModel.from_pretrained(model.unload(), tmp_path / "checkpoint-2")
    assert all(torch.equal(value, expected[name]) for name, value in again.steering_tensors().items())
