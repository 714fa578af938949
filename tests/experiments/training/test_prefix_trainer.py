"""What all rows begin with is computed once: same loss, same gradients; whole rows where that is not right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerscope.experiments.shared_prefix import SHORTEST, shared_length
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import Collator, supervised_loss, training_rows
from steerscope.experiments.training.engine import takes_logits_to_keep, trainer_of
from steerscope.experiments.training.prefix_trainer import with_cache
from steerscope.experiments.training.trainee import build
from steerscope.models.precision import true_float64
from tests.byte_models import byte_model
from tests.experiments.training.tiny_runs import METHODS, loaded, make_place, options

PREFIX = tuple(range(40, 52))
ROWS = [
    SupervisedSequence((*PREFIX, *range(start, start + n), 1), len(PREFIX) + n - k)
    for start, n, k in ((60, 5, 1), (70, 9, 2), (81, 3, 1), (93, 7, 3))
]
PAD = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("prefix"))


def collator(trainee) -> Collator:
    return Collator(PAD, takes_logits_to_keep(trainee.model), trainee.is_steered)


def shared_by(trainee, rows) -> int:
    return shared_length(trainee.model, [row.ids for row in rows], [row.first_target for row in rows], PAD)


def gradients(trainee, collate: Collator) -> tuple[float, dict[str, torch.Tensor]]:
    trainee.model.zero_grad()
    batch = with_cache(trainee.model, collate(ROWS))
    labels = batch.pop("labels")
    loss = supervised_loss(trainee.model(**batch), labels)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainee.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


CASES = [(method, "all") for method in METHODS] + [
    (method, rule) for method in ("post-block", "loreft") for rule in ("prompt", "completion", "last:2", "first:14")
]


@pytest.mark.parametrize(("method", "positions"), CASES)
def test_loss_and_gradients_are_those_of_whole_rows(place, method, positions):
    run = options(place, method, dtype="float64", **({} if positions == "all" else {"positions": positions}))
    trainee = build(loaded(place, dtype="float64"), run, [])
    generator = torch.Generator().manual_seed(0)
    for parameter in trainee.model.parameters():
        if parameter.requires_grad and method not in ("sft", "loreft", "direft"):  # away from where edits do nothing
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    whole = collator(trainee)
    length = shared_by(trainee, ROWS)
    assert length == len(PREFIX)
    trainee.model.train()
    with true_float64(trainee.model):
        loss, expected = gradients(trainee, whole)
        shared_loss, found = gradients(trainee, replace(whole, shared=length))
    assert shared_loss == pytest.approx(loss, rel=1e-10)
    assert found.keys() == expected.keys() != set()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-6
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9 * largest)
    # The prefix matters: without its tokens the loss is another.
    other = replace(whole, shared=length)(ROWS)
    other["prefix_ids"] = other["prefix_ids"].flip(1)
    labels = other.pop("labels")
    with torch.no_grad():
        assert abs(float(supervised_loss(trainee.model(**with_cache(trainee.model, other)), labels)) - loss) > 1e-6
    trainee.restore()


def test_the_prefix_ends_before_what_rules_count_back_from(place):
    same = [SupervisedSequence((*PREFIX, 1), len(PREFIX))] * 4
    for positions, expected in (("all", len(PREFIX) - 1), ("last:3", len(PREFIX) - 3), ("last:9", 0)):
        trainee = build(loaded(place), options(place, positions=positions), [])
        assert shared_by(trainee, same) == expected  # the prompt's last token predicts, so it stands in the rows
        trainee.restore()
    trainee = build(loaded(place), options(place), [])
    assert shared_by(trainee, ROWS[:1]) == 0
    cut = len(PREFIX) - SHORTEST + 1
    assert shared_by(trainee, [SupervisedSequence(row.ids[cut:], SHORTEST) for row in ROWS]) == 0
    assert shared_by(trainee, [*ROWS, SupervisedSequence((*PREFIX[:-1], 99, 98, 1), len(PREFIX) + 1)]) == cut + 6


def test_rates_that_are_kept_as_numbers_count():
    model = byte_model("opt", dropout=0.1)
    ids, prompts = [row.ids for row in ROWS], [row.first_target for row in ROWS]
    assert shared_length(model.train(), ids, prompts, PAD) == 0
    assert shared_length(model.eval(), ids, prompts, PAD) == len(PREFIX)
    assert shared_length(byte_model("opt", dropout=0.0, layerdrop=0.0).train(), ids, prompts, PAD) == len(PREFIX)


def test_dropout_and_other_caches_mean_whole_rows(place, monkeypatch):
    base = loaded(place)
    trainee = build(base, options(place, "sft"), [])
    trainee.model.train()
    assert shared_by(trainee, ROWS) == len(PREFIX)
    attention = base.site_map.blocks[0].module.self_attn
    attention.attention_dropout = 0.1
    assert shared_by(trainee, ROWS) == 0
    assert trainee.model.training
    trainee.model.eval()  # nothing is dropped
    assert shared_by(trainee, ROWS) == len(PREFIX)
    forward = base.model.forward

    def wrong_cache(*args, past_key_values=None, **kwargs):  # goes on without what stands before
        if past_key_values is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :]
        return forward(*args, **kwargs)

    monkeypatch.setattr(base.model, "forward", wrong_cache)
    assert shared_by(trainee, ROWS) == 0
    monkeypatch.setattr(base.model, "forward", lambda *args, use_cache=None, **kwargs: forward(*args, **kwargs))
    monkeypatch.setattr(base.model.config, "use_cache", False)
    assert shared_by(trainee, ROWS) == 0
    trainee.restore()


def test_a_training_computes_the_prefix_once_per_batch(place, tmp_path):
    base = loaded(place)
    run = options(place, steps=2, batch_size=4)
    trainee = build(base, run, [])
    shapes: list[tuple[int, ...]] = []
    block = base.site_map.blocks[0].module
    handle = block.register_forward_hook(lambda module, args, out: shapes.append(tuple(args[0].shape[:2])))
    rows = training_rows(ROWS, 2, 4, 0)
    trainer = trainer_of(trainee, rows, run, tmp_path, pad=PAD, steps=2, learning_rate=0.1, keeps=False)
    shapes.clear()
    trainer.train()
    handle.remove()
    block.self_attn.attention_dropout = 0.1
    dropping = trainer_of(trainee, rows, run, tmp_path, pad=PAD, steps=2, learning_rate=0.1, keeps=False)
    assert (trainer.data_collator.shared, dropping.data_collator.shared) == (len(PREFIX), 0)
    rests = [max(len(row.ids) for row in rows[i : i + 4]) - len(PREFIX) for i in (0, 4)]
    assert shapes == [(1, len(PREFIX)), (4, rests[0]), (1, len(PREFIX)), (4, rests[1])]
    trainee.restore()
