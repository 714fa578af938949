"""One training of every method: the loss, what is computed, and the common start of all rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.shared_prefix import shared_length
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import training_rows
from steerscope.experiments.training.fit import fit
from steerscope.experiments.training.trainee import build
from tests.byte_models import byte_model
from tests.experiments.engine.test_common_start import assert_same_steps, moved
from tests.experiments.training.tiny_runs import METHODS, loaded, make_place, options

PREFIX = tuple(range(40, 52))
ROWS = [
    SupervisedSequence((*PREFIX, *range(start, start + n), 1), len(PREFIX) + n - k)
    for start, n, k in ((60, 5, 1), (70, 9, 2), (81, 3, 1), (93, 7, 3))
]
PAD = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("fit"))


def fitted(trainee, rows, run, folder, **changes):
    fixed = {"pad": PAD, "steps": run.steps, "learning_rate": 0.1, "keeps": False, "show": lambda done, total: None}
    return fit(trainee, rows, run, folder, **(fixed | changes))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_the_mean_over_the_supervised_tokens_of_each_sequence_alone(place, family):
    model = byte_model(family).double()
    with torch.no_grad():
        found = ModelPack(model, options(place, "sft").spec(0.1), PAD).losses([0], [ROWS])
        losses = []
        for one in ROWS:
            logits = model(input_ids=torch.tensor([one.ids])).logits[0]
            targets = torch.tensor(one.ids[one.first_target :])
            losses.append(F.cross_entropy(logits[one.first_target - 1 : -1], targets, reduction="none"))
    expected = torch.cat(losses).mean()
    assert not torch.allclose(expected, losses[0].mean())  # sequences differ
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=0)


CASES = [(method, "all") for method in METHODS] + [
    (method, rule) for method in ("post-block", "loreft") for rule in ("prompt", "completion", "last:2", "first:14")
]


@pytest.mark.parametrize(("method", "positions"), CASES)
def test_loss_and_gradients_of_every_method_are_those_of_whole_rows(place, method, positions):
    run = options(place, method, dtype="float64", **({} if positions == "all" else {"positions": positions}))
    trainee = build(loaded(place, dtype="float64"), run, [])
    pack = ModelPack(trainee.model, run.spec(0.1), PAD)
    if method not in ("sft", "loreft", "direft"):  # away from where edits do nothing
        moved(pack)
    assert_same_steps(pack, [ROWS], 1e-8 if method == "sft" else 1e-9)
    trainee.restore()


def test_only_what_counts_is_computed(place, tmp_path):
    """Logits where they predict, gradients down to the lowest site, the common start once."""
    base, run = loaded(place), options(place, sites=("1.resid_post",), steps=2, batch_size=4)
    trainee = build(base, run, [])
    logits, below, shapes = [], [], []
    blocks = [block.module for block in base.site_map.blocks]
    base.model.lm_head.register_forward_hook(lambda m, a, out: logits.append(out.shape[:2].numel()))
    for block in blocks:
        block.register_forward_hook(lambda m, a, out: below.append((m is blocks[1], out.requires_grad)))
    blocks[0].register_forward_hook(lambda m, a, out: shapes.append(tuple(a[0].shape[:2])))
    rows = training_rows(ROWS, 2, 4, 0)
    fitted(trainee, rows, run, tmp_path)
    supervised = [sum(len(row.ids) - row.first_target for row in rows[i : i + 4]) for i in (0, 4)]
    assert logits[-4:] == [0, supervised[0], 0, supervised[1]]
    assert set(below[-8:]) == {(False, False), (True, True)}
    rests = [max(len(row.ids) for row in rows[i : i + 4]) - len(PREFIX) for i in (0, 4)]
    assert shapes[-4:] == [(1, len(PREFIX)), (4, rests[0]), (1, len(PREFIX)), (4, rests[1])]
    trainee.restore()


def test_dropout_is_drawn_for_every_row_and_seeded(place, tmp_path):
    """A start that stands apart would share what is dropped; the caller's random numbers stay."""
    found = []
    for seed in (0, 0, 1):
        base, run = loaded(place), options(place, "sft", steps=2, batch_size=4, seed=seed)
        attention = base.site_map.blocks[0].module.self_attn
        trainee = build(base, run, [])
        attention.attention_dropout, shapes = 0.5, []
        base.site_map.blocks[0].module.register_forward_hook(
            lambda m, a, out, shapes=shapes: shapes.append(a[0].shape[0]) if m.training else None
        )
        before = torch.get_rng_state()
        found.append(fitted(trainee, training_rows(ROWS, 2, 4, 0), run, tmp_path, learning_rate=1e-3).losses)
        assert shapes == [4, 4]
        assert torch.equal(torch.get_rng_state(), before)
        assert not trainee.model.training
    assert found[0] == found[1] != found[2]


def test_rates_of_dropout_that_are_kept_as_numbers_count():
    model = byte_model("opt", dropout=0.1)
    ids, prompts = [row.ids for row in ROWS], [row.first_target for row in ROWS]
    assert shared_length(model.train(), ids, prompts, PAD) == 0
    assert shared_length(model.eval(), ids, prompts, PAD) == len(PREFIX)
    assert shared_length(byte_model("opt", dropout=0.0, layerdrop=0.0).train(), ids, prompts, PAD) == len(PREFIX)
