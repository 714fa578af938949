"""Rotary embeddings that look at the batch: its composition changes no number, at any door."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steerscope import SteeringConfig
from steerscope.analysis.data.encoding import batches, encode, encode_for
from steerscope.analysis.data.examples import Example
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.options import RankOptions
from steerscope.errors import InputError
from steerscope.experiments.engine import EditPack, RunSpec
from steerscope.experiments.engine.held_out import hold_out
from steerscope.experiments.engine.judge import judge_pack
from steerscope.experiments.evaluation.generation import generate
from steerscope.experiments.evaluation.likelihood import choice_log_likelihoods, completion_loss
from steerscope.experiments.finetune import mean_loss, short_finetune
from steerscope.experiments.shared_prefix import shared_length
from steerscope.experiments.tasks.task import TaskExample
from steerscope.experiments.training.data import Parts, supervised
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.validate import validate_ranking
from steerscope.models import wrap_model
from steerscope.models.lengths import batches_within, context_of, switch_length
from tests.byte_models import byte_model, byte_tokenizer
from tests.splits import splits_of_examples
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

SWITCH = 16
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.0],
    "long_factor": [4.0, 16.0],
    "original_max_position_embeddings": SWITCH,
}
SETTINGS = {"rope_parameters": ROPE, "original_max_position_embeddings": SWITCH}
CHOICES = (" 1", " 2", " 3")


def loaded():
    return wrap_model(tiny_model("phi3", **SETTINGS), tiny_tokenizer())


def examples(n: int = 24) -> list[Example]:
    """Half of them on either side of the switch, which 15 to 18 tokens straddle."""
    prompts = [
        f"[ MAX {' '.join(str((i * 7 + k) % 40) for k in range(6 + (i % 3) + 8 * (i % 2)))} ] =" for i in range(n)
    ]
    return [Example(prompt, CHOICES[i % 3], CHOICES, i % 3) for i, prompt in enumerate(prompts)]


def shares(batch_size: int, padding_side: str = "right") -> dict:
    found = rank_sites(loaded(), examples(), RankOptions(batch_size=batch_size, padding_side=padding_side, rank=2))
    return {site.name: site.score for site in found.sites}


def test_both_sides_are_there():
    lengths = {len(s.ids) for s in encode_for(loaded(), examples()).sequences}
    assert min(lengths) <= SWITCH < max(lengths)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_ranking_does_not_depend_on_the_batch(padding_side):
    assert shares(16, padding_side) == pytest.approx(shares(1), abs=1e-3)


TEXTS = ["q\n", "short one\n", "a question beyond it\n", "another question, beyond\n", "twelve bytes"]


def question(prompt: str) -> TaskExample:
    return TaskExample(prompt, "Yes", answer="Yes", choices=("Yes", "No, never"), answer_index=0)


ASKED = [question(text) for text in TEXTS]


def byte_phi():
    return byte_model("phi3", **SETTINGS)


@pytest.mark.parametrize("prefix", ["", "the same start "])  # what all rows begin with is computed once
def test_evaluation_does_not_depend_on_the_batch(prefix):
    model, tokenizer = byte_phi(), byte_tokenizer()
    asked = [question(prefix[:9] + text) for text in TEXTS]
    lengths = [len(tokenizer(one.prompt)["input_ids"]) for one in asked]
    assert min(lengths) <= SWITCH < max(lengths)

    def measured(batch_size):
        found = choice_log_likelihoods(model, tokenizer, asked, batch_size=batch_size)
        texts = generate(model, tokenizer, [one.prompt for one in asked], max_new_tokens=6, batch_size=batch_size)
        loss = completion_loss(model, tokenizer, asked, batch_size=batch_size)
        return [value for sums, _ in found for value in sums] + [loss], [one.text for one in texts]

    together, alone = measured(16), measured(1)
    assert together[0] == pytest.approx(alone[0], abs=1e-4)
    assert together[1] == alone[1]
    with torch.no_grad():  # and they are those of whole rows by themselves
        for one, (sums, _) in zip(asked, choice_log_likelihoods(model, tokenizer, asked), strict=True):
            before, after = tokenizer(one.prompt)["input_ids"], tokenizer("No, never")["input_ids"]
            if len(before) <= SWITCH < len(before) + len(after):
                logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
                assert sums[1] == pytest.approx(float(logits.gather(-1, torch.tensor(after)[:, None]).sum()), abs=1e-4)


def test_a_start_is_not_shared_beyond_the_switch():
    model = byte_phi()
    short, long = [[5] * 9 + [6], [5] * 9 + [7]], [[5] * 9 + [6], [5] * 9 + [7] * 9]
    assert shared_length(model, short, [10, 10], 2) == 9
    assert shared_length(model, long, [10, 18], 2) == 0


def test_a_fine_tuning_and_a_judgement_do_not_depend_on_the_batch():
    model = loaded()
    assert mean_loss(model, examples(12), batch_size=12) == pytest.approx(mean_loss(model, examples(12), batch_size=1))
    steps: list[float] = []
    short_finetune(model, examples(12), steps=1, batch_size=12, progress=lambda done, total, loss: steps.append(loss))
    assert steps == [pytest.approx(mean_loss(model, examples(12), batch_size=1))]
    held = hold_out([(e.prompt, e.completion, None) for e in examples(12)], model.tokenizer, None, model.model)
    assert len({len(row.ids) > SWITCH for row in held.sequences}) == 2
    for site in ("0.resid_post", "1.resid_post"):  # the second enters from a kept stream
        pack = EditPack(model, [RunSpec(SteeringConfig(sites=site, family="vector"), 0.1)])
        together, single = (judge_pack(pack, held.sequences, batch_size=size)[0].losses for size in (12, 1))
        torch.testing.assert_close(together, single, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="examples of one step are longer than"):
        pack.losses([0], [held.sequences])


def test_no_batch_has_both_sides():
    encoded = encode_for(loaded(), examples())
    cut = list(batches(encoded, batch_size=16, pad_id=2, device=torch.device("cpu")))
    assert all(len({int(n) > SWITCH for n in one.length}) == 1 for one in cut)
    assert sum(len(one.length) for one in cut) == len(encoded.sequences)
    lengths = [3, 16, 17, 40, 41]
    assert list(batches_within(range(5), lengths.__getitem__, 2, 16)) == [[0, 1], [2, 3], [4]]
    assert list(batches_within(range(5), lengths.__getitem__, 4, None)) == [[0, 1, 2, 3], [4]]
    assert list(batches_within([], lengths.__getitem__, 4, 16)) == []


def test_batches_that_are_fixed_in_advance_are_refused():
    model = wrap_model(byte_phi(), byte_tokenizer())
    parts = Parts(tuple(ASKED), (), ())
    options = TrainOptions(method="lora", task="listops", model="m", batch_size=4)
    with pytest.raises(InputError, match=r"of 5 training examples are longer than 16 tokens.*max_length 16"):
        supervised(parts, model, options)
    alone = TrainOptions(method="lora", task="listops", model="m", batch_size=1)
    assert len(supervised(parts, model, alone)[0]) == 5
    assert supervised(parts, model, TrainOptions(method="lora", task="listops", model="m", max_length=16))[1] > 0


def test_a_validation_is_refused_before_it_ranks(tmp_path):
    options = ValidateOptions(sites=6, num_ranking=24, num_selection=16, num_test=16)
    with pytest.raises(InputError, match="training examples are longer than 16 tokens"):
        validate_ranking(loaded(), splits_of_examples("lists", examples(400)), options, tmp_path)
    assert not list(tmp_path.iterdir())


def test_choices_of_one_example_on_both_sides_are_refused():
    prompt = "[ MAX " + "3 " * 10 + "] ="
    with pytest.raises(InputError, match="1 of 2 choices of example 1 are longer than 16 tokens"):
        encode_for(loaded(), [Example(prompt, " 1", (" 1", " 1 2 3 4"), 0)])


# --- what configurations say ---


def with_config(**settings) -> nn.Module:
    model = nn.Module()
    model.get_decoder = lambda: model
    model.config = SimpleNamespace(**settings)
    return model


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"rope_parameters": {"rope_type": "default"}}, None),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64}, None),
        ({"rope_parameters": ROPE}, SWITCH),
        ({"rope_parameters": {"full_attention": ROPE, "sliding_attention": {"rope_type": "default"}}}, SWITCH),
        ({"rope_parameters": {"full_attention": ROPE, "sliding_attention": None}}, SWITCH),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 8}, 8),
        ({"rope_scaling": {"type": "longrope"}, "max_position_embeddings": 64}, 64),
    ],
)
def test_where_a_configuration_switches(settings, expected):
    assert switch_length(with_config(**settings)) == expected


def test_layers_that_disagree_are_refused():
    other = {**ROPE, "original_max_position_embeddings": 32}
    with pytest.raises(InputError, match=r"different lengths \(\[16, 32\]\)"):
        switch_length(with_config(rope_parameters={"a": ROPE, "b": other}))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_longrope_switches_and_all_have_a_context(family):
    assert switch_length(tiny_model(family)) is None
    assert context_of(tiny_model(family)) == 64


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])  # learned positions, and rotary ones
def test_texts_beyond_the_context_are_not_run_whatever_the_caller_allows(family):
    positions = {"n_positions": 24} if family == "gpt2" else {"max_position_embeddings": 24}
    model, tokenizer = byte_model(family, **positions), byte_tokenizer()
    short, long = question("a\n"), question("a" * 30)
    prompts = [short.prompt, long.prompt]
    for limit in (None, 1000):
        assert generate(model, tokenizer, prompts, max_new_tokens=4, max_length=limit)[1] is None
        assert choice_log_likelihoods(model, tokenizer, [short, long], max_length=limit)[1] is None
        assert completion_loss(model, tokenizer, [short, long], max_length=limit) > 0
    with pytest.raises(InputError, match="the model's context is 24"):
        encode([Example(long.prompt, "b")], tokenizer, wrap_model(model, tokenizer).max_length)


def test_a_dynamic_embedding_gives_the_same_numbers_in_any_batch():
    settings = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}}
    model, tokenizer = byte_model("llama", **settings, max_position_embeddings=40), byte_tokenizer()
    asked = [*ASKED, question("far too long " * 4)]
    alone = choice_log_likelihoods(model, tokenizer, asked, batch_size=1)
    together = choice_log_likelihoods(model, tokenizer, asked, batch_size=16)
    assert alone[-1] is None
    assert together[-1] is None
    for one, other in zip(alone[:-1], together[:-1], strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
