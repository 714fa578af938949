"""What must not change a number: batch size, padding, order of the examples, running twice."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from steerscope.analysis.capture import sketched
from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import make_probes
from steerscope.analysis.capture.recorder import Recorder
from steerscope.analysis.capture.rounded import wide_feature
from steerscope.analysis.data.encoding import Encoded, OutputMode, batches, encode
from steerscope.analysis.data.examples import Example
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.errors import InputError
from steerscope.models.load import LoadedModel, wrap_model
from tests.tiny import LAYOUTS, VOCAB, tiny_model, tiny_tokenizer

# All tolerances of this file, for float32 models.
# Features, in the norm of one example's feature over it: two orders of the same float32 sums.
FEATURES = 1e-5
# Sketched features are stored in eight bits, where a last-digit difference before rounding can become one unit, the
# 127th part of the largest number, in a few entries.
SKETCHED_FEATURES = 1e-2
# Scores, absolute below 1 and relative above; the ridge keeps regressions from amplifying the features' rounding.
SCORES = 3e-4
SKETCHED_SCORES = 2e-3  # the 576 numbers that stand for the weights here are of eight bits too

PROBABILITIES = ("residual", "curvature", "loss", "correct")


@cache
def examples_of(mode: OutputMode, count: int = 7) -> tuple[Example, ...]:
    """Return random examples of many lengths, in no order of length."""
    draw = random.Random(f"{mode} {count}")
    found = []
    for _ in range(count):
        numbers = " ".join(str(draw.randrange(30)) for _ in range(draw.randint(1, 9)))
        prompt = f"{draw.choice(['MAX', 'MIN', 'SM'])} [ {numbers} ] ="
        if mode is OutputMode.COMPLETION:
            words = [str(draw.randrange(30)) for _ in range(draw.randint(1, 3))]
            found.append(Example(prompt, " " + " ".join(words)))
            continue
        choices = [f" {n}" for n in draw.sample(range(30), draw.randint(2, 4))]
        if mode is OutputMode.CHOICE_LIKELIHOODS:
            choices = [c + draw.choice(["", " yes", " no maybe"]) for c in choices[:-1]] + [choices[-1] + " no"]
        answer = draw.randrange(len(choices))
        found.append(Example(prompt, choices[answer], tuple(choices), answer))
    return tuple(found)


@cache
def loaded(family: str) -> LoadedModel:
    return wrap_model(tiny_model(family), tiny_tokenizer())


def encoded_of(mode: OutputMode, order: list[int] | None = None) -> Encoded:
    chosen = examples_of(mode)
    encoded = encode([chosen[i] for i in order] if order else chosen, tiny_tokenizer(), 64)
    assert encoded.mode is mode
    return encoded


def capture_of(model: LoadedModel, encoded: Encoded, *, exact: bool = True, **options) -> Features:
    probes = make_probes(encoded, 2, VOCAB, 0, torch.float32)
    plan = SketchPlan(exact=True) if exact else SketchPlan(exact=False, blocks=4, size=8, weight_size=24)
    return capture(model, encoded, probes, plan, **{"seed": 0, "batch_size": 16} | options)


@cache
def plain(family: str, mode: OutputMode, exact: bool) -> Features:
    """Return the features every other capture is compared with: one padded batch per example, on the right."""
    return capture_of(loaded(family), encoded_of(mode), exact=exact, batch_size=1)


def tensors(features: Features) -> dict[str, Tensor]:
    """Return everything recorded per example, by name."""
    found = {f"{name} {site}": value for name in ("linear", "vector") for site, value in vars(features)[name].items()}
    found = {name: wide_feature(value) for name, value in found.items()}
    found |= {f"weights {i}": value for i, value in enumerate(features.weights)}
    found |= {name: getattr(features, name) for name in PROBABILITIES}
    return found


def check_same(found: Features, expected: Features, tolerance: float, order: list[int] | None = None) -> None:
    """Compare two captures example by example; ``order[i]`` is the example of ``expected`` in row i of ``found``."""
    one, other = tensors(found), tensors(expected)
    assert one.keys() == other.keys()
    assert {s: pytest.approx(v, rel=FEATURES) for s, v in expected.read_rms.items()} == found.read_rms
    for name, value in one.items():
        right = other[name] if order is None else other[name][order]
        left, right = (t.double().reshape(len(t), -1) for t in (value, right))
        size = right.norm(dim=1)
        if name in PROBABILITIES:  # where the model is sure of its answer they are rounding alone
            size = size.pow(2).mean().sqrt().expand_as(size)
        gap = ((left - right).norm(dim=1) / size.clamp_min(1e-30)).max()
        assert gap < tolerance, f"{name}: {gap:.1e}"
    assert any(value.abs().max() > 1e-3 for name, value in one.items() if name.startswith("linear"))


# Every layout and every mode once or twice, where all pairs would only cost time.
EVERY_OTHER = list(zip(LAYOUTS, (*OutputMode, *OutputMode), strict=False))

# --- features ---


@pytest.mark.parametrize("mode", list(OutputMode))
@pytest.mark.parametrize("family", LAYOUTS)
def test_batches_and_padding_change_no_feature(family, mode):
    side = "left" if family in ("llama", "gpt2", "phi") else "right"
    found = capture_of(loaded(family), encoded_of(mode), batch_size=16, padding_side=side)
    check_same(found, plain(family, mode, True), FEATURES)


@pytest.mark.parametrize("mode", OutputMode)
def test_batches_and_padding_change_no_feature_of_examples_sorted_by_length(mode):
    family, encoded = "gpt2", encoded_of(mode)
    longest = [max(len(s.ids) for s in encoded.sequences if s.example == e) for e in range(encoded.num_examples)]
    order = sorted(range(encoded.num_examples), key=longest.__getitem__)
    assert order != list(range(len(order)))
    found = capture_of(loaded(family), encoded_of(mode, order), batch_size=16, padding_side="left")
    check_same(found, plain(family, mode, True), FEATURES, order)


@pytest.mark.parametrize(("family", "mode"), EVERY_OTHER)
def test_order_of_examples_changes_no_feature(family, mode):
    order = list(range(len(examples_of(mode))))[::-1]
    found = capture_of(loaded(family), encoded_of(mode, order), batch_size=1, padding_side="left")
    check_same(found, plain(family, mode, True), FEATURES, order)


@pytest.mark.parametrize("mode", list(OutputMode))
def test_batches_and_padding_change_sketches_by_rounding(mode):
    found = capture_of(loaded("llama"), encoded_of(mode), exact=False, batch_size=16, padding_side="left")
    check_same(found, plain("llama", mode, False), SKETCHED_FEATURES)
    assert {value.dtype for value in found.linear.values()} == {torch.int8}


def test_control_other_examples_are_told_apart():
    """What the comparison sees when two examples of equal length change places."""
    mode = OutputMode.CHOICE_LIKELIHOODS
    expected = plain("llama", mode, True)
    order = [1, 0, *range(2, len(examples_of(mode)))]
    with pytest.raises(AssertionError, match="linear"):
        check_same(expected, expected, 0.1, order)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("family", "mode"), EVERY_OTHER)
def test_the_token_that_pads_changes_no_digit(family, mode, side):
    model = loaded(family)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "?"
    other = replace(model, tokenizer=tokenizer)
    assert other.tokenizer.pad_token_id != model.tokenizer.pad_token_id
    one, two = (capture_of(m, encoded_of(mode), padding_side=side) for m in (model, other))
    for name, value in tensors(one).items():
        assert torch.equal(value, tensors(two)[name]), name


@pytest.mark.parametrize("mode", OutputMode)
@pytest.mark.parametrize("side", ["right", "left"])
def test_more_padding_leaks_into_no_feature(mode, side):
    """A much longer example in the batch pads all others more. It comes last: the scales are the others'."""
    shorter, model = sorted(examples_of(mode), key=lambda e: len(e.prompt.split()))[:4], loaded("gpt2")
    long = replace(shorter[0], prompt="SM [ " + "7 8 " * 20 + "] =")
    pair = [encode(chosen, tiny_tokenizer(), 64) for chosen in (shorter, [*shorter, long])]
    widths = [next(batches(e, batch_size=64, pad_id=2, device=model.device)).ids.shape[1] for e in pair]
    assert widths[1] > widths[0] + 20
    alone, with_long = (
        capture_of(model, e, batch_size=64, padding_side=side, scale_examples=len(shorter)) for e in pair
    )
    first = {name: value[: len(shorter)] for name, value in tensors(with_long).items()}
    for name, expected in tensors(alone).items():
        gap = float((first[name] - expected).norm() / expected.norm().clamp_min(1e-30))
        assert gap < FEATURES, f"{name}: {gap:.1e}"


# --- rankings ---


# Little of everything that only costs time.
FAST = RankOptions(max_sites=2, num_groups=4, num_probes=2, kinds=("resid_mid", "mlp_in", "mlp_hidden"))


@cache
def ranking(mode: OutputMode, **options) -> Ranking:
    return rank_sites(loaded("llama"), examples_of(mode, 24), replace(FAST, **options))


def without_timing(found: Ranking) -> dict:
    return {name: value for name, value in json.loads(found.to_json()).items() if name != "timing"}


def check_scores(found: Ranking, expected: Ranking, tolerance: float) -> None:
    """Compare all scores of all candidates, the intervals, kinds and sets."""

    def numbers(ranking: Ranking) -> dict[object, float]:
        out: dict[object, float] = {}
        for site in ranking.sites:
            key = (site.name, site.family)
            out |= {(*key, "low"): site.ci_low, (*key, "high"): site.ci_high}
            out |= {(*key, name): value for name, value in site.scores.items()}
        for kind in ranking.kinds:
            out |= {(kind.kind, kind.family): kind.score}
        for step in ranking.greedy:
            out |= {("set", step.step, step.layer, step.kind): step.score}
        return out | {"spearman": ranking.stability.spearman}

    one, other = numbers(found), numbers(expected)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value == pytest.approx(other[key], rel=tolerance, abs=tolerance), key


# Exact and sketched, one sequence per example and several.
RANKED = [
    (OutputMode.CHOICE_LIKELIHOODS, True),
    (OutputMode.COMPLETION, True),
    (OutputMode.CHOICE_LIKELIHOODS, False),
    (OutputMode.CHOICE_LOGITS, False),
]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"padding_side": "left"}], ids=["batch_size", "padding_side"])
@pytest.mark.parametrize(("mode", "exact"), RANKED)
def test_batches_and_padding_change_no_score(mode, options, exact):
    tolerance = SCORES if exact else SKETCHED_SCORES
    check_scores(ranking(mode, exact=exact, **options), ranking(mode, exact=exact), tolerance)


@pytest.mark.parametrize(("mode", "exact"), RANKED)
def test_twice_and_in_another_order_is_the_same_ranking(mode, exact):
    """Not close but equal: the file's order decides nothing, and nothing is drawn without a seed."""
    options = replace(FAST, exact=exact)
    shuffled = random.Random(1).sample(examples_of(mode, 24), 24)
    first = without_timing(ranking(mode, exact=exact))
    assert without_timing(rank_sites(loaded("llama"), shuffled, options)) == first
    ranking.cache_clear()
    assert without_timing(ranking(mode, exact=exact)) == first
    if exact:
        assert without_timing(rank_sites(loaded("llama"), shuffled, replace(options, seed=1))) != first


def test_the_model_is_left_as_it_was():
    model = loaded("llama")
    before = {n: p.detach().clone() for n, p in model.model.named_parameters()}
    rank_sites(model, examples_of(OutputMode.CHOICE_LOGITS, 24), RankOptions(max_sites=1, num_groups=2, num_probes=1))
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not parameter.requires_grad
        assert parameter.grad is None
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.model.modules())


def test_more_groups_than_examples_in_a_half_are_refused():
    with pytest.raises(InputError, match="num_groups"):
        rank_sites(loaded("llama"), examples_of(OutputMode.CHOICE_LOGITS, 24), replace(FAST, num_groups=13))


def test_the_order_in_which_batches_meet_sites_decides_nothing(monkeypatch):
    """Few sites at once are met in another order than many at once: the error of sketches is of the same sites."""
    model = wrap_model(tiny_model("llama", num_hidden_layers=12), tiny_tokenizer())
    found, met = [], []
    kept = Recorder.features
    monkeypatch.setattr(Recorder, "features", lambda *given: met.append(kept(*given)) or met[-1])
    for at_once in (1, 2**19):
        monkeypatch.setitem(sketched._AT_ONCE, "cpu", at_once)
        found.append(rank_sites(model, examples_of(OutputMode.CHOICE_LOGITS, 24), replace(FAST, exact=False)))
    first, second = (list(features.linear) for features in met)
    assert first != second
    assert sorted(map(str, first)) == sorted(map(str, second))
    assert len(first) > 48  # every second one is looked at
    assert found[0].kernels == found[1].kernels
