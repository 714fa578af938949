"""A capture in slices is that of one machine, to the bit; slices that do not fit together are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from steerscope import Example, InputError, RankOptions, rank_sites, wrap_model
from steerscope.analysis import ranking
from steerscope.analysis.capture.batch_plan import planned_batches, tokens_of
from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.capture.slices import Slice, capture_slice, cut, joined
from steerscope.analysis.data.encoding import encode_for
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.models.memory import Memory
from tests.cli.runs import CHOICES, question
from tests.tiny import tiny_model, tiny_tokenizer

SETTINGS = {"seed": 3, "batch_size": 4}


def examples(kind: str, count: int = 24) -> list[Example]:
    """Prompts of unequal lengths, in an order that is not that of length."""
    prompts = [question(i) + " 7" * (i * 5 % 4) for i in range(count)]
    if kind == "completion":
        return [Example(prompt, f" {i % 3} {i % 5}", None, None) for i, prompt in enumerate(prompts)]
    choices = CHOICES if kind == "one token" else [" 1 2", " 3", " 4 5 6"]
    return [Example(prompt, choices[i % 3], tuple(choices), i % 3) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(tiny_model("llama"), tiny_tokenizer())


def prepared(loaded, kind):
    encoded = encode_for(loaded, examples(kind))
    return loaded, encoded, make_probes(encoded, 2, 64, 0, torch.float32)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", ["one token", "sequences", "completion"])
@pytest.mark.parametrize("plan", [SketchPlan(False, 2, 4, 8), SketchPlan(True)], ids=["sketched", "exact"])
def test_slices_are_what_one_machine_captures(loaded, kind, plan, count, tmp_path):
    given = (*prepared(loaded, kind), plan)
    whole = capture(*given, **SETTINGS)
    for index in range(count):
        capture_slice(*given, index=index, count=count, **SETTINGS).save(tmp_path / f"{index}")
    found = joined([Slice.load(tmp_path / f"{index}") for index in reversed(range(count))])
    for field in dataclasses.fields(whole):
        one, other = getattr(whole, field.name), getattr(found, field.name)
        if field.name == "weights":
            one, other = dict(enumerate(one)), dict(enumerate(other))
        pairs = [(one[key], other[key]) for key in one] if isinstance(one, dict) else [(one, other)]
        assert not isinstance(one, dict) or list(one) == list(other)
        assert all(torch.equal(*two) if isinstance(two[0], torch.Tensor) else two[0] == two[1] for two in pairs), field
    rows = Rows.of(whole)
    kernels = [Kernel.of(one.weights, one, rows) for one in (whole, found)]
    assert torch.equal(kernels[0].probe, kernels[1].probe)


def test_slices_take_whole_batches_and_about_as_many_tokens(loaded):
    _, encoded, _ = prepared(loaded, "sequences")
    sizes = tokens_of(encoded, planned_batches(encoded, 4))
    for count in (1, 2, 3, len(sizes)):
        slices = cut(encoded, 4, count)
        assert sorted(row for own in slices for row in own) == list(range(24))
        tokens = [sum(len(s.ids) for s in encoded.sequences if s.example in own) for own in map(set, slices)]
        assert max(tokens) - min(tokens) <= 2 * max(sizes)
    for count in (0, len(sizes) + 1):
        with pytest.raises(InputError, match=f"asked for {count} slices of {len(sizes)} batches"):
            cut(encoded, 4, count)


def test_a_ranking_of_slices_is_that_of_one_machine(loaded):
    options = RankOptions(max_examples=24, batch_size=4, exact=False, sketch=SketchPlan(False, 2, 4, 8))

    def in_slices(*given, **more):
        return joined([capture_slice(*given, index=index, count=3, **more) for index in range(3)])

    one = rank_sites(loaded, examples("one token"), options)
    other = rank_sites(loaded, examples("one token"), options, capture_by=in_slices)
    assert dataclasses.replace(other, timing={}) == dataclasses.replace(one, timing={})


def test_slices_that_do_not_fit_together(loaded):
    given = (*prepared(loaded, "one token"), SketchPlan(False, 2, 4, 8))
    first, second = (capture_slice(*given, index=index, count=2, **SETTINGS) for index in range(2))
    for wrong in ([second], [first, first], [first, second, second]):
        with pytest.raises(InputError, match="examples are missing or there twice"):
            joined(wrong)
    scales = {site: 1.01 * scale for site, scale in second.features.scales.items()}
    other = Slice(second.rows, dataclasses.replace(second.features, scales=scales))
    with pytest.raises(InputError, match="Give all machines the same model"):
        joined([first, other])


def test_memory_is_said_of_the_batch_with_the_most_logits_where_they_take_the_most(monkeypatch):
    """Long prompts make the batches of most tokens, long completions those of most logits."""
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    long = [Example(question(i) + " 7" * 40, " 7") for i in range(30)]
    encoded = encode_for(loaded, [*long, *(Example(question(i), " 7" * 20) for i in range(30))])
    logits: list[int] = []

    def needed(model, tokens, number, *, kept):
        logits.append(number)
        return Memory(weights=0, batch=number * 10**9, kept=kept, free=None)

    monkeypatch.setattr(ranking, "memory_needed", needed)
    options = RankOptions(exact=False, batch_size=8)
    said = ranking._memory(loaded, encoded, make_probes(encoded, 2, 64, 0, torch.float32), options.sketch, options)
    assert max(logits) > 2 * logits[0]
    assert said.batch >= max(logits) * 10**9


def test_memory_is_said_of_the_largest_batch_there_is(monkeypatch):
    """All sequences of a prompt share a batch, however long they are: here four of forty tokens."""
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    choices = (" 1 2", " 3 4", " 5 6", " 7 7")
    lengths = [2] * 30 + [36]
    found = [Example(question(i) + " 7" * length, choices[i % 4], choices, i % 4) for i, length in enumerate(lengths)]
    encoded = encode_for(loaded, found)
    largest = max(tokens_of(encoded, planned_batches(encoded, 8)))
    said: list[int] = []
    needed = ranking.memory_needed
    monkeypatch.setattr(
        ranking,
        "memory_needed",
        lambda model, tokens, *rest, **names: said.append(tokens) or needed(model, tokens, *rest, **names),
    )
    rank_sites(loaded, found, RankOptions(exact=False, batch_size=8), say=lambda sentence: None)
    assert max(said) == largest
    assert len(said) == len(planned_batches(encoded, 8))
    assert largest >= 4 * 36
