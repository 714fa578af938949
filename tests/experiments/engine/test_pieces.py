"""Rows of a step are cut by length: the losses and gradients of one pass, with fewer tokens of padding."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from steerscope.experiments.engine import EditPack
from steerscope.experiments.engine import pack as packs
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.pieces import pieces_of
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.precision import true_float64
from tests.experiments.engine.test_common_start import START, moved
from tests.experiments.engine.test_pack import close, loaded_model, lora_of, many, spec, trained
from tests.tiny import VOCAB, tiny_model


def batch(lengths, seed=0, start=()):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        found.append(SupervisedSequence((*start, *ids), len(start) + length - 1 - length % 2))
    return found


SHORT, LONG, MIXED = batch([4, 5, 4, 6]), batch([19, 18, 20, 20], 1), batch([4, 17, 5, 16], 2)


def tokens(pieces, start=0):
    """Tokens that passes compute, and how many passes there are."""
    computed = 0
    for places, parts in pieces:
        width = max(len(row.ids) for part in parts for row in part)
        computed += len(places) * (len(parts[0]) * (width - start) + start)
    return computed, len(pieces)


def test_every_row_is_in_one_pass_and_shared_rows_stay_one_object():
    batches = [SHORT, MIXED, SHORT, LONG, MIXED]
    found = pieces_of(batches, 0, 1)
    rows = [[] for _ in batches]
    for places, parts in found:
        assert len({len(part) for part in parts}) == 1
        assert len({id(part) for part in parts}) == len({id(batches[place]) for place in places})
        for place, part in zip(places, parts, strict=True):
            rows[place] += part
    for own, whole in zip(rows, batches, strict=True):
        assert sorted(row.ids for row in own) == sorted(row.ids for row in whole)
    assert tokens(found)[0] < tokens([(list(range(5)), batches)])[0] / 1.4


@pytest.mark.parametrize("fixed", [0, 3, 10, 1000])
@pytest.mark.parametrize("start", [0, 3])
def test_no_other_cut_of_a_batch_is_cheaper(fixed, start):
    whole = sorted(batch([4, 9, 5, 20, 9, 6]), key=lambda row: len(row.ids))
    places = [0, 1, 2]

    def cost(pieces):
        computed, passes = tokens(pieces, start)
        return computed + fixed * passes

    cuts = [(0, *inner, 6) for count in range(6) for inner in combinations(range(1, 6), count)]
    least = min(cost([(places, [whole[i:j]] * 3) for i, j in pairwise(ends)]) for ends in cuts)
    assert cost(pieces_of([whole] * 3, start, fixed)) == least


def test_a_cut_that_does_not_pay_leaves_the_batches_themselves():
    batches = [MIXED, MIXED, SHORT]
    ((places, parts),) = pieces_of(batches, 0, 1000)
    assert places == [0, 1, 2]
    assert all(part is whole for part, whole in zip(parts, batches, strict=True))


def test_a_pass_has_no_more_tokens_than_it_may():
    batches = [MIXED, MIXED, LONG]
    found = pieces_of(batches, 0, 1000, 100)
    assert len(found) > 1
    assert (
        max(
            len(places) * len(parts[0]) * max(len(row.ids) for part in parts for row in part) for places, parts in found
        )
        <= 100
    )
    assert len(pieces_of(batches, 0, 1000, 1)) == 4  # a row of each run at least


def losses_and_gradients(pack, batches):
    runs = range(len(pack.specs))
    for run in runs:
        for parameter in pack.parameters_of(run):
            parameter.grad = None
    with true_float64(pack.language_model):
        losses = pack.add_gradients(list(runs), batches)
    assert not losses.requires_grad
    return losses, [[p.grad for p in pack.parameters_of(run)] for run in runs]


def assert_cut_equals_whole(monkeypatch, pack, batches, passes):
    pack.prepare([row for own in batches for row in own])
    whole = losses_and_gradients(pack, batches)
    monkeypatch.setattr(packs, "PASS", 1)
    assert len(pack._pieces(batches)) >= passes
    cut = losses_and_gradients(pack, batches)
    torch.testing.assert_close(cut[0], whole[0], rtol=1e-11, atol=0)
    for own, expected in zip(cut[1], whole[1], strict=True):
        largest = max(float(value.abs().max()) for value in expected)
        assert largest > 1e-6
        for value, other in zip(own, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-10 * largest)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_losses_and_gradients_are_those_of_one_pass(monkeypatch, family):
    pack = moved(EditPack(loaded_model(family), [one for one in many() if one.config.family != "loreft"]))
    batches = [MIXED if one.seed else LONG for one in pack.specs[:-1]] + [SHORT]
    assert_cut_equals_whole(monkeypatch, pack, batches, 3)


def test_a_common_start_is_computed_once_per_pass(monkeypatch):
    pack = moved(EditPack(loaded_model(), [spec("0.resid_post"), spec("0.mlp_out")]))
    mixed = batch([4, 17, 5, 16], 3, START)
    assert_cut_equals_whole(monkeypatch, pack, [mixed, mixed], 2)
    assert pack._shares


def test_lora_is_cut_too_and_a_model_with_dropout_is_not(monkeypatch):
    pack = moved(ModelPack(lora_of(tiny_model("llama", torch.float64)).eval(), spec(), 2))
    assert_cut_equals_whole(monkeypatch, pack, [MIXED], 2)
    dropping = torch.nn.Dropout(0.1)
    pack.language_model.add_module("dropping", dropping.train())
    pack.prepare(MIXED)
    assert len(pack._pieces([MIXED])) == 1


def test_gradients_of_passes_are_those_of_the_losses(monkeypatch):
    pack = moved(EditPack(loaded_model(), [spec("0.resid_post"), spec("1.mlp_out")]))
    pack.prepare([*MIXED, *LONG])
    monkeypatch.setattr(packs, "PASS", 1)
    losses, gradients = losses_and_gradients(pack, [MIXED, LONG])
    for run in (0, 1):
        for parameter in pack.parameters_of(run):
            parameter.grad = None
    with true_float64(pack.language_model):
        whole = pack.losses([0, 1], [MIXED, LONG])
        whole.sum().backward()
    torch.testing.assert_close(losses, whole.detach(), rtol=1e-12, atol=0)
    for run in (0, 1):
        for own, parameter in zip(gradients[run], pack.parameters_of(run), strict=True):
            torch.testing.assert_close(own, parameter.grad, rtol=1e-10, atol=1e-12)


def test_runs_trained_in_pieces_come_to_the_same(monkeypatch):
    loaded = loaded_model()
    whole = trained(loaded, many())
    monkeypatch.setattr(packs, "PASS", 1)
    for found, expected in zip(trained(loaded, many()), whole, strict=True):
        close(found.tensors, expected.tensors)
