"""Virtual tokens of PEFT's prompt-learning methods: refused wherever tokens are told apart."""

from __future__ import annotations

import peft
import pytest
import torch

from steerscope import SteeringConfig, get_steering_model, rank_sites
from steerscope.analysis.data.examples import Example
from steerscope.errors import InputError
from steerscope.experiments.evaluation.adapters import read_adapter
from steerscope.experiments.evaluation.generation import generate
from steerscope.experiments.evaluation.likelihood import sequence_log_likelihoods
from steerscope.models.load import LoadedModel, wrap_model
from steerscope.models.site_map import find_sites
from tests.steering.cases import RULES, prompts
from tests.tiny import tiny_model, tiny_tokenizer

METHODS = {
    "prompt tuning": (peft.PromptTuningConfig, {}),
    "prefix tuning": (peft.PrefixTuningConfig, {}),
    "p-tuning": (peft.PromptEncoderConfig, {"encoder_hidden_size": 8}),
    "multitask prompt tuning": (peft.MultitaskPromptTuningConfig, {"num_tasks": 2}),
    "cpt": (peft.CPTConfig, {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1] * 4}),
}


def config_of(method: str) -> peft.PeftConfig:
    kind, options = METHODS[method]
    return kind(task_type="CAUSAL_LM", **({} if method == "cpt" else {"num_virtual_tokens": 4}), **options)


def with_virtual_tokens(method: str) -> peft.PeftModel:
    return peft.get_peft_model(tiny_model("llama"), config_of(method)).eval()


@pytest.mark.parametrize("method", METHODS)
def test_positions_are_refused_when_wrapping(method):
    model = with_virtual_tokens(method)
    for rule in (*RULES, "mask"):
        config = SteeringConfig("resid_post", rank=2, positions=rule)
        if rule == "all":  # virtual tokens too, in training as in generation
            get_steering_model(model, config).unload()
            continue
        with pytest.raises(InputError, match=rf"4 virtual tokens before every row.*'{rule}' are counted without them"):
            get_steering_model(model, config)


@pytest.mark.parametrize("method", ["prompt tuning", "prefix tuning"])
def test_generation_under_a_wrapper_of_peft_is_refused(method):
    """PEFT would give them to the steered model, whose base model generates."""
    steering = get_steering_model(tiny_model("llama"), SteeringConfig("resid_post", rank=2)).eval()
    wrapped = peft.get_peft_model(steering, config_of(method)).eval()
    with pytest.raises(InputError, match=r"4 virtual tokens before every row.*would leave them out"):
        wrapped.generate(input_ids=prompts()[0][None], max_new_tokens=2, pad_token_id=2)


@pytest.mark.parametrize("method", ["prompt tuning", "prefix tuning", "p-tuning", "cpt"])
@pytest.mark.parametrize("outside", [False, True])
def test_passes_under_a_wrapper_of_peft_are_refused(method, outside):
    """Put on after the edits, around the base model or around the steered one."""
    base, row = tiny_model("llama"), prompts()[0][None]
    model = get_steering_model(base, SteeringConfig("resid_post", rank=2, positions="first:2")).eval()
    wrapped = peft.get_peft_model(model if outside else base, config_of(method)).eval()
    given = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}
    with pytest.raises(InputError, match=r"4 virtual tokens before every row.*'first:2' are counted without them"):
        wrapped(**given)
    if method == "prefix tuning" and not outside:  # with others generate() warns
        with pytest.raises(InputError, match="4 virtual tokens before every row"):
            wrapped.generate(input_ids=row, max_new_tokens=2, pad_token_id=2)
    assert model(**given).logits.shape[1] == row.shape[1]


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_and_rankings_are_refused(method, tmp_path):
    model = with_virtual_tokens(method)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="puts 4 virtual tokens before every row, and results would depend on the batch"
    ):
        read_adapter(tmp_path)
    tokenizer = tiny_tokenizer("left")
    steering = get_steering_model(model, SteeringConfig("resid_post", rank=2))
    for wrapped in (steering, model):
        with pytest.raises(InputError, match="results would depend on the batch"):
            generate(wrapped, tokenizer, ["1 2", "3"], max_new_tokens=1)
        with pytest.raises(InputError, match="results would depend on the batch"):
            sequence_log_likelihoods(wrapped, [([5, 6, 7], 2)], 2, batch_size=1)
    identity = wrap_model(tiny_model("llama"), tokenizer).identity
    examples = [Example(prompt=str(i), completion=str(i % 3)) for i in range(24)]
    with pytest.raises(InputError, match="a ranking reads tokens by their place in a row"):
        rank_sites(LoadedModel(model, tokenizer, find_sites(model), identity), examples)
