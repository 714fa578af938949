"""What is learned from: order, padding, labels, and logits at supervised places alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import POOL, Collator, draw_parts, supervised_loss, training_rows
from steerscope.experiments.training.engine import takes_logits_to_keep, trainer_of
from steerscope.experiments.training.trainee import build
from steerscope.steering import SteeringConfig, get_steering_model
from tests.byte_models import byte_model
from tests.experiments.training.tiny_runs import loaded, make_place, options, task_of

SEQUENCES = [SupervisedSequence(tuple(range(3, 3 + n)), n - k) for n, k in ((5, 2), (9, 1), (7, 4), (12, 3), (6, 1))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("data"))


def test_the_order_covers_all_examples_evenly_in_batches_of_one_length():
    many = [SupervisedSequence(tuple(range(n)), 1) for n in range(2, 66)]
    rows = training_rows(many, steps=32, batch_size=4, seed=0)
    assert len(rows) == 128
    assert sorted(rows[:64], key=lambda row: len(row.ids)) == many  # one epoch
    assert rows == training_rows(many, steps=32, batch_size=4, seed=0)
    assert rows != training_rows(many, steps=32, batch_size=4, seed=1)
    spread = [max(map(len, b)) - min(map(len, b)) for b in ([r.ids for r in rows[i : i + 4]] for i in range(0, 128, 4))]
    assert sum(spread) / len(spread) < 12  # by chance it is 39
    assert POOL * 4 < 64


def test_batches_mask_the_prompt_and_train_the_end():
    batch = Collator(pad=2, keeps=True, told=True)(SEQUENCES[:3])
    assert batch["input_ids"].shape == (3, 9)
    assert batch["input_ids"][0].tolist() == [2, 2, 2, 2, 3, 4, 5, 6, 7]
    assert batch["labels"][0].tolist() == [-100] * 7 + [6, 7]
    assert batch["position_ids"][0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    assert batch["prompt_lengths"].tolist() == [3, 8, 3]
    assert batch["logits_to_keep"] == 5
    assert set(Collator(2, False, False)(SEQUENCES)) == {"input_ids", "attention_mask", "position_ids", "labels"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("keeps", [True, False])
def test_the_loss_is_that_of_each_sequence_alone(family, keeps):
    model = byte_model(family).double()
    batch = Collator(pad=2, keeps=keeps, told=False)(SEQUENCES)
    labels = batch.pop("labels")
    with torch.no_grad():
        found = supervised_loss(model(**batch), labels)
        losses = []
        for one in SEQUENCES:
            logits = model(input_ids=torch.tensor([one.ids])).logits[0]
            targets = torch.tensor(one.ids[one.first_target :])
            losses.append(F.cross_entropy(logits[one.first_target - 1 : -1], targets, reduction="none"))
        expected = torch.cat(losses).mean()
        assert not torch.allclose(expected, losses[0].mean())  # sequences differ
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_logits_are_computed_at_the_end_alone_and_gradients_stop_at_the_lowest_site(place, tmp_path):
    base = loaded(place)
    run = options(place, sites=("1.resid_post",))
    trainee = build(base, run, [])
    widths, below = [], []
    base.model.lm_head.register_forward_hook(lambda m, a, out: widths.append(out.shape[1]))
    base.site_map.blocks[0].module.register_forward_hook(lambda m, a, out: below.append(out.requires_grad))
    base.site_map.blocks[1].module.register_forward_hook(lambda m, a, out: below.append(out.requires_grad))
    trainer = trainer_of(trainee, SEQUENCES[:4], run, tmp_path, pad=2, steps=1, learning_rate=0.1, keeps=False)
    trainer.train()
    assert widths == [5]
    assert below == [False, True]


def test_models_that_compute_all_logits_are_known():
    class Old(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            """Takes no logits_to_keep."""

    assert not takes_logits_to_keep(Old())
    assert takes_logits_to_keep(get_steering_model(byte_model(), SteeringConfig("resid_post", rank=2)))


def test_parts_are_disjoint_and_only_train_depends_on_the_seed(place):
    task = task_of(place)
    first, second = (draw_parts(task, options(place, seed=seed, learning_rate="auto", steps=5)) for seed in (0, 1))
    assert first.train != second.train
    assert first.train_set != second.train_set
    assert (first.validation, first.test) == (second.validation, second.test)
    prompts = [{one.prompt for one in part} for part in (first.train, first.validation, first.test)]
    assert [len(one) for one in prompts] == [20, 6, 6]
    assert not prompts[0] & (prompts[1] | prompts[2])
    assert not prompts[1] & prompts[2]
    assert draw_parts(task, options(place)).validation == ()
